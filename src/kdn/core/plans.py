"""Plans: what a technique asks of the executor. Tensors are named in annotations only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from kdn.core.blocks import EXACT, Recipe
from kdn.core.names import TokenIds

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "ALL_ROWS",
    "AllRows",
    "Choose",
    "ColumnScale",
    "Enter",
    "GivenRows",
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
        ...

    @property
    def num_tokens(self) -> int: ...

    def start(self, layer: int) -> None:
        """Begin to fetch `layer`; the executor asks one layer ahead. Never blocks."""
        ...

    def take(self, layer: int) -> Sequence[LayerKV]:
        """The layer as neighbouring runs of tokens, first to last, waiting for it if needed.

        Read-only, and valid until `close`.  Raises CorruptBlock when it cannot be had.
        """
        ...

    def close(self) -> None:
        """Unpin what is open. Calling it twice is harmless."""
        ...


@dataclass(frozen=True)
class StoredRun:
    """Columns [start, start + source.num_tokens) take their K and V from `source`."""

    start: int
    source: LayerSource

    @property
    def stop(self) -> int:
        return self.start + self.source.num_tokens


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
    attend: Callable[[Tensor, Tensor], Tensor]
    """attend(row indices into `rows`, columns) -> attention mass [columns] those rows put there."""

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
        ...


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


@dataclass(frozen=True)
class Enter:
    """Rows that join at `layer` with a supplied hidden state [len(positions), hidden]."""

    layer: int
    positions: tuple[int, ...]
    hidden: Tensor


@dataclass(frozen=True)
class ColumnScale:
    """At `layer`, attention to `columns` is scaled by `factor` before it is renormalised.

    `heads` limits it to some query heads; None means all.  Equals adding log(factor) to the scores.
    """

    layer: int
    columns: tuple[int, ...]
    factor: float
    heads: tuple[int, ...] | None = None


class Observer(Protocol):
    """Reads layers as they are computed; must not change anything."""

    def __call__(self, view: LayerView) -> None: ...


@dataclass(frozen=True)
class RetainedPrefix:
    """Which positions' KV outlive the pass, as unrotated blocks: the first `num_tokens` of them."""

    num_tokens: int
    recipe: Recipe = EXACT


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
    observers: tuple[Observer, ...] = ()
    keep: RetainedPrefix | None = None
    logits: tuple[int, ...] | None = None
    """None means the last position only."""
    allowed: tuple[int, ...] | None = None
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
    def is_steady(self) -> bool:
        """True when the rows of layer 0 are the rows of every layer, and nothing observes them."""
        return not (self.enter or self.observers) and all(rule is ALL_ROWS for rule in self.rows)

    def rule(self, layer: int) -> RowRule:
        return self.rows[layer] if len(self.rows) > 1 else self.rows[0]
