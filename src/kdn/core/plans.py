"""Plans: what a technique asks of the executor. Tensors are named in annotations only."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import TYPE_CHECKING, Protocol

from kdn.core.blocks import EXACT, Recipe
from kdn.core.names import TokenIds
from kdn.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "ALL_ROWS",
    "AllRows",
    "AttentionSums",
    "Choose",
    "ColumnScale",
    "Enter",
    "GivenRows",
    "HiddenSource",
    "LayerKV",
    "LayerSource",
    "LayerView",
    "Observer",
    "Plan",
    "RetainedPrefix",
    "RowRule",
    "Selector",
    "StoredRun",
]


@dataclass(frozen=True)
class LayerKV:
    """K (without rotary position, after q/k norm) and V of a run of tokens: [tokens, heads, dim]."""

    k: Tensor
    v: Tensor
    shift: Tensor | None = None
    """[heads, dim] of K's type, not yet added to K: code that places or compares K adds it to every key."""

    @property
    def num_tokens(self) -> int:
        return int(self.k.shape[0])

    def shifted(self) -> LayerKV:
        """The same with the shift added, a copy if there is one."""
        return self if self.shift is None else LayerKV(self.k + self.shift, self.v)


class LayerSource(Protocol):
    """Stored KV, handed over a layer at a time."""

    @property
    def name(self) -> str:
        """Equal names mean equal KV, so that sequences may share one copy in memory."""

    @property
    def num_tokens(self) -> int: ...

    def start(self, layer: int) -> None:
        """Begin to fetch `layer`; the executor asks one layer ahead. Never blocks."""

    def take(self, layer: int) -> Sequence[LayerKV]:
        """The layer as neighbouring runs of tokens, first to last, waiting for it if needed.

        Read-only, and valid until `close`.  Raises CorruptBlock when it cannot be had.
        """

    def close(self) -> None:
        """Unpin what is open. Calling it twice is harmless."""


@dataclass(frozen=True)
class StoredRun:
    """Columns [start, start + source.num_tokens) take their K and V from `source`."""

    start: int
    source: LayerSource
    layers: tuple[range, ...] | None = None
    """The layers that it supplies; None: all.  At the others nothing is fetched: rows compute the columns."""

    @property
    def stop(self) -> int:
        return self.start + self.source.num_tokens

    def supplies(self, layer: int) -> bool:
        """Do the columns come from the source at `layer`?"""
        return self.layers is None or any(layer in one for one in self.layers)


class AttentionSums(Protocol):
    """The attention that rows of a layer put on columns, computed on demand. Column scales are not in it."""

    def __call__(self, rows: Tensor, columns: Tensor) -> Tensor:
        """[columns] fp32, summed over heads and over `rows`, which are indices into the view's rows."""

    def by_head(self, rows: Tensor, columns: Tensor) -> Tensor:
        """[query heads, columns] fp32, summed over `rows`."""


@dataclass(frozen=True)
class LayerView:
    """What a selector or observer may see of one layer of one sequence, read-only.

    Row-wise tensors follow `rows` (ascending positions of the rows computed at this layer);
    column-wise ones hold every position. Keys carry no rotary position in `fresh` and `stored`.
    """

    layer: int
    rows: Tensor
    """[rows] int64 positions."""
    hidden: Tensor
    """[rows, hidden] the layer's input."""
    query: Tensor
    """[rows, heads, dim] rotated."""
    fresh: LayerKV
    """[rows, kv heads, dim]."""
    join_stored: Callable[[], LayerKV | None]
    """Joins the stored runs to one tensor; `stored` calls it."""
    attend: AttentionSums

    @cached_property
    def stored(self) -> LayerKV | None:
        """[columns, kv heads, dim] what the store supplied (zero where it supplied nothing).

        A copy, made on first use: valid until the layer is done.
        """
        return self.join_stored()


class Selector(Protocol):
    """Chooses rows. Pure: equal views give equal choices."""

    def __call__(self, view: LayerView, count: int) -> Tensor:
        """`count` ascending indices into `view.rows`: the rows that go on."""


@dataclass(frozen=True)
class AllRows:
    """Every row that the layer before computed goes on (at layer 0: every row without stored KV)."""


@dataclass(frozen=True)
class GivenRows:
    """These positions, known beforehand. Rows absent from the layer before need `Plan.enter`."""

    positions: tuple[int, ...]


@dataclass(frozen=True)
class Choose:
    """`count` rows of the layer before go on, picked by `selector` once K and V are known."""

    selector: Selector
    count: int


RowRule = AllRows | GivenRows | Choose
ALL_ROWS = AllRows()


class HiddenSource(Protocol):
    """Stored inputs of one layer, for rows that enter there."""

    def start(self) -> None:
        """Begin to fetch; called before any stored KV is asked for. Never blocks; twice is harmless."""

    def take(self, start: int, stop: int) -> Tensor:
        """[stop - start, hidden] of these rows, counted from the first one, waiting for them if needed.

        Raises CorruptBlock when they cannot be had.
        """

    def close(self) -> None:
        """Unpin what is open. Calling it twice is harmless."""


@dataclass(frozen=True)
class Enter:
    """Rows at `positions`, ascending, that join at `layer` with the layer's input as it is given."""

    layer: int
    positions: tuple[int, ...]
    hidden: Tensor | None = None
    """[len(positions), hidden], or None where `source` supplies it."""
    source: HiddenSource | None = None

    def states(self, first: int, stop: int) -> tuple[tuple[int, ...], Tensor]:
        """The positions in [first, stop) and their inputs. Raises CorruptBlock like the source."""
        low, high = bisect_left(self.positions, first), bisect_left(self.positions, stop)
        if self.source is not None:
            return self.positions[low:high], self.source.take(low, high)
        assert self.hidden is not None, "rows enter with a tensor or a source"
        return self.positions[low:high], self.hidden[low:high]


@dataclass(frozen=True)
class ColumnScale:
    """At `layer`, attention to `columns` is scaled by `factor` before it is renormalised.

    `heads` limits it to some query heads; None means all.  Equals adding log(factor) to the scores.
    The `literal` form scales what the softmax gave, and renormalises nothing: the values of the columns
    count `factor` times (LLMSteer, 2411.13009, section 3).
    It belongs to the sequence: rows that are decoded after the prompt attend in the same way.  Raises
    BadInput for a factor that has no logarithm.
    """

    layer: int
    columns: tuple[int, ...]
    factor: float
    heads: tuple[int, ...] | None = None
    literal: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.factor < inf:
            raise BadInput(f"a column's factor is {self.factor}; give a number above 0")


class Observer(Protocol):
    """Reads layers as they are computed; must not change anything.

    A long prompt may be cut in passes: each shows the rows that it computes.
    """

    def __call__(self, view: LayerView) -> None: ...


@dataclass(frozen=True)
class RetainedPrefix:
    """Which positions' KV outlive the pass, as unrotated blocks, and how it was made."""

    num_tokens: int | None
    """So many of the prompt's first ones; None: all that the request asks for, its answer's among them."""
    recipe: Recipe = EXACT

    def within(self, stop: int) -> int:
        """Where what is kept of the first `stop` positions ends."""
        return stop if self.num_tokens is None else min(stop, self.num_tokens)


@dataclass(frozen=True)
class Plan:
    """What to compute for one prompt, layer by layer.

    `prefix` is exact KV of the first positions (shared, read-only); `stored` supplies other columns,
    which rows may overwrite.  `rows` holds one rule per layer, or one rule for all.  `logits` are the
    positions whose logits are wanted; `allowed` restricts them to some token ids.
    """

    token_ids: TokenIds
    prefix: LayerSource | None = None
    rows: tuple[RowRule, ...] = (ALL_ROWS,)
    stored: tuple[StoredRun, ...] = ()
    enter: tuple[Enter, ...] = ()
    scale: tuple[ColumnScale, ...] = ()
    scale_from: int = 0
    """Rows at positions before it attend as if nothing were scaled: their KV is that of a plain prefill."""
    observers: tuple[Observer, ...] = ()
    keep: RetainedPrefix | None = None
    logits: tuple[int, ...] | None = None
    """None means the last position only."""
    allowed: tuple[int, ...] | None = None
    adapter_from: int = 0
    """Rows at positions before it are computed without the request's adapter: by the base model."""
    row_chunk: int | None = None
    """Position-wise work runs this many rows at a time (PrefillOnly); None means all together."""
    one_layer: bool = False
    """K and V live for one layer only; what is to outlive the pass must be kept as it goes by.
    Such a prompt runs as one pass, and nothing can be decoded after it."""
    then: Callable[[], Plan] | None = None
    """This plan is a probe pass: when it is done, `then` gives the plan to run in its place.

    The second plan finds the columns as the first left them, so it names no stored runs of its own.
    """

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_prefix(self) -> int:
        return self.prefix.num_tokens if self.prefix is not None else 0

    @property
    def computes_in_order(self) -> bool:
        """Are all rows computed, each from what stands before it?"""
        simple = all(rule is ALL_ROWS for rule in self.rows)
        return simple and not (
            self.stored or self.enter or self.observers or self.scale or self.then
        )

    @property
    def can_be_cut(self) -> bool:
        """Plans whose rows are known beforehand may run in parts; others see all their rows together."""
        chooses = any(isinstance(rule, Choose) for rule in self.rows)
        return not (self.one_layer or chooses or (self.observers and self.stored))

    @property
    def is_steady(self) -> bool:
        """True when the rows of layer 0 are the rows of every layer, and nothing observes them."""
        first, *others = self.rows
        named = not isinstance(first, Choose) and all(rule is ALL_ROWS for rule in others)
        return named and not (self.enter or self.observers)

    def rule(self, layer: int) -> RowRule:
        return self.rows[layer] if len(self.rows) > 1 else self.rows[0]
