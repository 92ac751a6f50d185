"""Tables of commas or tabs: a line a row, each cell under the name of its column."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from kdn.errors import DocumentError
from kdn.machine.text import counted
from kdn.rag.documents import Paragraph, ParsedDocument, compose
from kdn.rag.files import decode

__all__ = ["parse_csv"]

_ROWS_A_PARAGRAPH = 20


def parse_csv(source: str, path: Path, data: bytes) -> ParsedDocument:
    """`column: value; column: value` for each row, so that a row is understood by itself.

    Raises DocumentError for a table whose rows are longer than its header.
    """
    text = decode(path, data)
    # the limit is the whole process's: a cell may be as long as the file, other files keep what they have
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    delimiter = "," if path.suffix.lower() == ".csv" else "\t"
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    header = [name.strip() for name in next(reader, [])]
    lines = list(_lines(path, reader, header))
    if not lines:
        lines = [", ".join(header)]
    pieces = (lines[at : at + _ROWS_A_PARAGRAPH] for at in range(0, len(lines), _ROWS_A_PARAGRAPH))
    return compose(source, path.name, (Paragraph("\n".join(piece)) for piece in pieces))


def _lines(path: Path, rows: Iterator[list[str]], header: list[str]) -> Iterator[str]:
    for number, row in enumerate(rows, 2):
        if len(row) > len(header):
            raise DocumentError(
                f"{path}, row {number}: {counted(len(row), 'cell')} under {counted(len(header), 'column')};"
                " quote cells that hold commas, or save it as plain text"
            )
        cells = zip(header, (" ".join(cell.split()) for cell in row), strict=False)
        line = "; ".join(f"{name}: {cell}" if name else cell for name, cell in cells if cell)
        if line:
            yield line
