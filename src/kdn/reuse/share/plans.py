"""The ways to use a sibling's KV of a context, as plans.

group [a..b]   layers a to b of the context are computed, from the sender's layer inputs E at a;
               the sender's KV stands for the others (DroidSpeak, 2411.02820, section 4)
rows           the rows that the question attends to are computed at all layers (the blending rule)
mapped         the sender's KV goes through a linear map on its way (`linear_map.py`)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kdn.core import ALL_ROWS, Enter, GivenRows, HiddenSource, LayerSource, Plan, StoredRun
from kdn.errors import BadInput
from kdn.reuse.blend.layout import BlendLayout
from kdn.reuse.blend.question_attention import AttendedRows
from kdn.reuse.blend.recomputed_rows import BlendRule

__all__ = ["MAP_WORK", "ShareChoice", "SharedSpan", "share_plan"]

MAP_WORK = 1.3 / 30
"""What a map costs, as a share of a prefill of the context: its multiplications, for SmolLM2-135M's shape."""


@dataclass(frozen=True)
class ShareChoice:
    """What is recomputed of a context that a sibling has read; by default nothing.

    Raises BadInput for a group that no model has, or for a group and rows together.
    """

    group: tuple[int, int] | None = None
    """The first and the last layer that are computed."""
    ratio: float = 0.0
    """The share of the rows that is computed, at all layers: those that the question attends to."""
    mapped: bool = False
    """Does the KV that is reused go through the pair's linear map?"""

    def __post_init__(self) -> None:
        if self.group is not None and not 0 <= self.group[0] <= self.group[1]:
            raise BadInput(
                f"the group of layers {self.group} does not ascend from 0; give FIRST, LAST"
            )
        if self.group is not None and self.ratio:
            raise BadInput("a group of layers and rows are not computed together; choose one")
        if not 0 <= self.ratio <= 1:
            raise BadInput(f"ratio is {self.ratio}; it is a share, 0 to 1, of the reused rows")

    @property
    def name(self) -> str:
        """For tables and traces: `layers 4-10`, `map + rows 20 %`."""
        parts = ["map"] if self.mapped else []
        if self.group is not None:
            parts.append("layers {}-{}".format(*self.group))
        if self.ratio:
            parts.append(f"rows {self.ratio:.0%}".replace("%", " %"))
        return " + ".join(parts) or "reuse"

    @property
    def needs_states(self) -> int | None:
        """The layer whose inputs the sender must have stored; None: none."""
        return self.group[0] if self.group is not None and self.group[0] > 0 else None


@dataclass(frozen=True)
class SharedSpan:
    """Positions [start, stop) of a prompt, with the sender's KV of them and perhaps its layer inputs."""

    start: int
    source: LayerSource
    states: HiddenSource | None = None

    @property
    def stop(self) -> int:
        return self.start + self.source.num_tokens


def share_plan(
    base: Plan,
    choice: ShareChoice,
    span: SharedSpan,
    num_layers: int,
    rule: BlendRule | None = None,
) -> Plan:
    """`base` with the span's columns from the sibling, and recomputed as `choice` says.

    All that is neither in the plan's prefix nor in the span is computed at every layer.  `rule`
    chooses the rows (default: those that the question attends to).
    """
    start, stop = span.start, span.stop
    layout = BlendLayout(base.num_tokens, base.num_prefix, ((start, stop),), stop)
    if choice.group is not None:
        return _group_plan(base, choice.group, span, layout, num_layers)
    reused = replace(base, rows=(ALL_ROWS,) * num_layers, stored=(StoredRun(start, span.source),))
    count = layout.budget(choice.ratio)
    return (rule or AttendedRows())(reused, layout, count) if count else reused


def _group_plan(
    base: Plan, group: tuple[int, int], span: SharedSpan, layout: BlendLayout, num_layers: int
) -> Plan:
    first, last = group[0], min(group[1], num_layers - 1)
    others = GivenRows(tuple(layout.forced.tolist()))
    everything = GivenRows(tuple(range(base.num_prefix, base.num_tokens)))
    rows = [everything if first <= layer <= last else others for layer in range(num_layers)]
    if first > 0 and span.states is None:
        raise BadInput(
            f"layers from {first} on are computed from layer inputs, which are not stored"
        )
    entering = tuple(range(span.start, span.stop))
    enter = () if first == 0 else (Enter(first, entering, source=span.states),)
    return replace(
        base,
        rows=tuple(rows),
        stored=_outside(span, (range(first), range(last + 1, num_layers))),
        enter=enter,
    )


def _outside(span: SharedSpan, layers: Sequence[range]) -> tuple[StoredRun, ...]:
    """The span at the layers that are not computed; none where all are."""
    taken = tuple(one for one in layers if one)
    return (StoredRun(span.start, span.source, layers=taken),) if taken else ()
