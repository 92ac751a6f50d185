"""Tables as text: a line a row, and every cell under its own column."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kdn.rag.bounds import TABLE_COLUMNS

__all__ = ["GridCell", "grid_lines"]


@dataclass(frozen=True)
class GridCell:
    """The text of one cell, and how many columns and rows it covers."""

    text: str
    columns: int = 1
    rows: int = 1


def grid_lines(rows: Iterable[Sequence[GridCell]]) -> list[str]:
    """`a | b | c` for each row that holds text; an empty cell keeps its place between two bars.

    A cell that covers several places stands in the first of them.  Columns without any text are
    left out: pages use them for space.
    """
    placed = list(_places(rows))
    used = sorted({column for row in placed for column in row})
    lines = (" | ".join(row.get(column, "") for column in used) for row in placed if row)
    return [line.rstrip() for line in lines]


def _places(rows: Iterable[Sequence[GridCell]]) -> Iterable[dict[int, str]]:
    """Column to text of each row, where cells of rows above push those below to the right."""
    covered: dict[int, int] = {}
    for row in rows:
        found: dict[int, str] = {}
        below = {column: left - 1 for column, left in covered.items() if left > 1}
        column = 0
        for cell in row:
            while column in covered:
                column += 1
            if cell.text:
                found[column] = cell.text
            width = max(1, min(cell.columns, TABLE_COLUMNS - column))
            if cell.rows > 1:
                below |= dict.fromkeys(range(column, column + width), cell.rows - 1)
            column += width
        covered = below
        yield found
