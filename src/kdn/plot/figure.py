"""What a picture shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Figure", "Interval", "Points"]

Points = Sequence[tuple[float, float]]
Interval = tuple[float, float]

_SPAN = 20.0
"""From this ratio of the largest to the smallest value on, an axis is logarithmic."""


@dataclass(frozen=True)
class Figure:
    """One picture: named lines over a shared axis, or points beside their names.

    An axis is logarithmic where its values are positive and span more than a decade, so that small
    values can be told apart. Without an `x_label` each line is one value, drawn beside its name.
    """

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Points]
    intervals: Mapping[str, Sequence[Interval]] = field(default_factory=dict)
    """By line: the low and the high end of each of its points."""
    level: float | None = None
    """What values are compared with, such as 1 for equal; drawn across."""
    is_linear: bool = False
    """True: linear axes, as for shares and counts."""
    joined: bool = True
    """False: the points of a line are measurements of their own, without an order."""

    @property
    def has_log_x(self) -> bool:
        return (
            bool(self.x_label)
            and not self.is_linear
            and _spans([x for points in self.lines.values() for x, _ in points])
        )

    @property
    def has_log_y(self) -> bool:
        ends = [end for both in self.intervals.values() for pair in both for end in pair]
        level = [] if self.level is None else [self.level]
        return not self.is_linear and _spans(
            [*(y for points in self.lines.values() for _, y in points), *ends, *level]
        )


def _spans(values: Sequence[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) / min(values) >= _SPAN
