"""From rows of a result to the lines of a figure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from kdn.bench.common.result import Row, Scalar
from kdn.plot import Interval

__all__ = ["Lines", "intervals_of", "lines_of", "over"]

Lines = dict[str, list[tuple[float, float]]]
_SPREAD = re.compile(r"(-?[\d.]+)-(-?[\d.]+)")


def lines_of(rows: Iterable[Row], name: str, x: str, y: str) -> Lines:
    """A line for each value of the column `name`, through the rows that have numbers in both others."""
    lines: Lines = {}
    for row in rows:
        if _is_number(row.get(x)) and _is_number(row.get(y)):
            place = (float(str(row[x])), float(str(row[y])))
            lines.setdefault(str(row[name]), []).append(place)
    return lines


def intervals_of(rows: Iterable[Row], name: str, y: str) -> dict[str, list[Interval]]:
    """The low and high ends that stand in the column `spread`, for the points of `lines_of`."""
    found: dict[str, list[Interval]] = {}
    for row in rows:
        ends = _SPREAD.match(str(row.get("spread") or ""))
        if _is_number(row.get(y)) and ends is not None:
            found.setdefault(str(row[name]), []).append((float(ends[1]), float(ends[2])))
    return found


def over(lines: Lines, base: Sequence[tuple[float, float]]) -> Lines:
    """Every line as a multiple of another, where both have a value."""
    below = dict(base)
    ratios = {
        name: [(x, y / below[x]) for x, y in points if below.get(x)]
        for name, points in lines.items()
    }
    return {name: points for name, points in ratios.items() if points}


def _is_number(value: Scalar) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
