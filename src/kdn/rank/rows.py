"""Tables on disk: rows of text in, the same rows with labels out; the suffix says in which form."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdn.core import UnsoundJson, read_sound_json
from kdn.errors import BadInput, MissingExtra
from kdn.machine.files import READABLE, publish_made, refuse_output
from kdn.machine.text import MAX_TEXT_BYTES, counted, decode_unicode, lines_of, read_bounded

__all__ = ["Row", "check_out", "columns_of", "read_rows", "write_rows"]

Row = Mapping[str, str]

_TABS = {".tsv", ".tab"}
_LINES = {".jsonl", ".ndjson"}
_PARQUET = ".parquet"
SUFFIXES = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", _PARQUET)


class _Cell(str):
    """The text of a value that is none, with the value: it is written again as it was read."""

    __slots__ = ("value",)
    value: object


def columns_of(rows: Sequence[Row]) -> list[str]:
    """The columns that any row has, in the order in which they first appear."""
    return list(dict.fromkeys(name for row in rows for name in row))


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a .csv or .tsv (with a header), .jsonl or .parquet file, every value as text.

    `write_rows` gives a row's numbers, dates, nulls and the like their kinds back where the form has them.
    Raises BadInput, with the line, for a row that does not fit its header or is no JSON object.
    """
    suffix = _suffix(path)
    try:
        if suffix == _PARQUET:
            found = [_texts(row) for row in _parquet().read_table(path).to_pylist()]
        else:
            data = read_bounded(path, otherwise="split it, or write it as Parquet")
            text = decode_unicode(data)
            rows = _json_rows(path, text) if suffix in _LINES else _csv_rows(path, text, suffix)
            found = list(rows)
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error
    except (OSError, ValueError, csv.Error) as error:
        raise BadInput(f"{path}: the rows cannot be read: {error}") from error
    if not found:
        raise BadInput(f"{path}: there is no row in it; the first line names the columns")
    return found


def _csv_rows(path: Path, text: str, suffix: str) -> Iterator[dict[str, str]]:
    csv.field_size_limit(MAX_TEXT_BYTES)  # a cell may be as long as the file
    delimiter = "\t" if suffix in _TABS else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header = next(reader, [])
    if len(set(header)) < len(header):
        twice = Counter(header).most_common(1)[0][0]
        raise BadInput(f"{path}: two columns are called {twice[:40]!r}; rename one")
    line = reader.line_num + 1
    for cells in reader:
        if cells and len(cells) != len(header):
            raise BadInput(
                f"{path}, line {line}: {counted(len(cells), 'cell')} under {counted(len(header), 'column')}"
                f" ({', '.join(header)}); quote cells that hold {delimiter!r}"
            )
        if cells:
            yield dict(zip(header, cells, strict=True))
        line = reader.line_num + 1


def _json_rows(path: Path, text: str) -> Iterator[dict[str, str]]:
    for number, line in enumerate(lines_of(text), 1):
        if not line.strip():
            continue
        try:
            row = read_sound_json(line)
        except UnsoundJson as error:
            raise BadInput(f"{path}, line {number}: {error}") from error
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{path}, line {number}: no JSON: {error}") from error
        if not isinstance(row, dict):
            raise BadInput(
                f"{path}, line {number}: a row is an object with a value for each column;"
                f" this is {line[:40]!r}"
            )
        try:
            yield _texts(row)
        except UnicodeEncodeError as error:
            raise BadInput(f"{path}, line {number}: half of a character: {error}") from error


def _texts(row: Mapping[Any, Any]) -> dict[str, str]:
    found = {str(name): _text(value) for name, value in row.items()}
    for name, text in found.items():
        (name + text).encode()  # what could not be written again is refused now
    return found


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    is_nested = isinstance(value, dict | list)
    cell = _Cell(json.dumps(value, default=str) if is_nested else "" if value is None else value)
    cell.value = value
    return cell


# --- out -------------------------------------------------------------------------------------


def check_out(path: Path, source: Path, *, force: bool = False) -> None:
    """Raises BadInput when a table cannot be written to `path`, before any work is done for it.

    One that is there is not written over without `force`, and the rows themselves never.
    """
    if _suffix(path) == _PARQUET:
        _parquet()
    refuse_output(path)
    if path.exists() and source.exists() and path.samefile(source):
        raise BadInput(f"{path}: these are the rows themselves; choose another file for the labels")
    if path.exists() and not force:
        raise BadInput(
            f"{path} is there already; --force labels again and writes over it,"
            " or choose another file"
        )


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Write rows whole, `columns` first; a row that lacks a column has an empty cell there.

    Raises BadInput for a suffix that no table has, StoreError when it cannot be written; the error says
    where the table is kept instead.
    """
    columns = list(dict.fromkeys((*columns, *(name for row in rows for name in row))))
    suffix = _suffix(path)
    if suffix == _PARQUET:
        data = _as_parquet(columns, rows)
    elif suffix in _LINES:
        data = "".join(map(_json_line, rows)).encode()
    else:
        data = _as_csv(columns, rows, tabs=suffix in _TABS)
    publish_made(path, data, READABLE)


def _json_line(row: Mapping[str, Any]) -> str:
    said = {name: _json_value(value) for name, value in row.items()}
    return json.dumps(said, ensure_ascii=False) + "\n"


def _json_value(value: object) -> object:
    """What was read, or its text where JSON has no such value."""
    if not isinstance(value, _Cell):
        return value
    try:
        json.dumps(value.value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError):
        return str(value)
    return value.value


def _as_parquet(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> bytes:
    import pyarrow as pa

    parquet = _parquet()
    texts = {name: [_plain(row.get(name)) for row in rows] for name in columns}
    kinds = {name: _column([_read(row.get(name)) for row in rows], texts[name]) for name in columns}
    sink = io.BytesIO()
    parquet.write_table(pa.table(kinds), sink)
    return sink.getvalue()


def _column(values: Sequence[object], texts: Sequence[object]) -> Any:
    """Values of one kind, or texts where they are of several; without any value it is one of texts."""
    import pyarrow as pa

    try:
        found = pa.array(values)
        is_same = all(map(_are_equal, found.to_pylist(), values))
    except (TypeError, ValueError, OverflowError):
        is_same = False
    if not is_same:
        found = pa.array([None if text is None else str(text) for text in texts], pa.string())
    return found.cast(pa.string()) if pa.types.is_null(found.type) else found


def _read(value: object) -> object:
    """The value that was read. Objects stay their text: the keys of each would be columns of all rows."""
    return value.value if isinstance(value, _Cell) and _is_flat(value.value) else _plain(value)


def _is_flat(value: object) -> bool:
    """Is it a single value, or a list of such?"""
    inside = value if isinstance(value, list) else [value]
    return not any(isinstance(one, dict | list) for one in inside)


def _are_equal(one: object, other: object) -> bool:
    is_nan = isinstance(one, float) and math.isnan(one)
    return isinstance(other, float) and math.isnan(other) if is_nan else one == other


def _plain(value: object) -> object:
    return str(value) if isinstance(value, _Cell) else value


def _as_csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], *, tabs: bool) -> bytes:
    sink = io.StringIO(newline="")
    writer = csv.DictWriter(sink, columns, restval="", delimiter="\t" if tabs else ",")
    writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue().encode()


def _suffix(path: Path) -> str:
    """Its suffix, whatever its case. Raises BadInput for one that no table has."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise BadInput(
            f"{path}: a table is one of {', '.join(SUFFIXES)}, not {path.suffix or 'without a suffix'}"
        )
    return suffix


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra(
            "Parquet files need pyarrow: pip install 'kdn[label]', or write .csv or .jsonl"
        ) from error
    return pyarrow.parquet
