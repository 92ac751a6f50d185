"""What one file may cost. Each bound is checked before the work that it bounds."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "LONG_TEXT_CHARS",
    "MAX_HEADING_CHARS",
    "MAX_LEVELS",
    "MAX_NESTING",
    "MAX_PAGES",
    "MAX_TEXT_CHARS",
    "MIB",
    "MIN_LETTERS_SHARE",
    "PARSER_MEMORY_BYTES",
    "TABLE_COLUMNS",
    "Cost",
]

MIB = 1024 * 1024

MAX_TEXT_CHARS = 32 * MIB
"""Of the text that a file holds, once it is parsed: a compressed PDF can hold much."""
MAX_NESTING = 4096
"""Elements of HTML inside one another; parsers take time that grows with its square."""
MAX_LEVELS = 200
"""Lists and quotations of Markdown inside one another; a list and its item are two levels."""
MAX_PAGES = 10_000
"""Of a PDF."""
MAX_HEADING_CHARS = 1000
"""A longer heading is a paragraph: headings are repeated in every passage under them."""
TABLE_COLUMNS = 256
"""Columns that a cell of HTML may span, or push to the right."""
PARSER_MEMORY_BYTES = 2048 * MIB
"""Data of the process that parses."""
MIN_LETTERS_SHARE = 0.05
"""Letters and digits among the characters of a long text; signs alone say nothing to a search."""
LONG_TEXT_CHARS = 20_000
"""From here on a text is long enough to be judged by its share of letters."""


@dataclass(frozen=True)
class Cost:
    """How large a file of one kind may be, and how long its parser may compute."""

    max_bytes: int
    seconds: float = 4.0
    """Of processor time, for any file."""
    seconds_a_mib: float = 3.0
    """More of it, for its size: several times what ordinary files take."""

    def allowed_s(self, num_bytes: int) -> float:
        """Seconds of processor time for a file of this size."""
        return self.seconds + self.seconds_a_mib * num_bytes / MIB
