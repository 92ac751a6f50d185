"""Bytes of a file as text: the one place that knows byte-order marks and ends of lines.

A text has the same characters, and so the same blocks, whichever command reads it.
"""

from __future__ import annotations

import codecs
import sys
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

from kdn.errors import BadInput

__all__ = [
    "MAX_TEXT_BYTES",
    "counted",
    "decode_unicode",
    "has_mark",
    "lines_of",
    "normal_lines",
    "read_bounded",
    "read_json_lines",
    "read_text",
    "read_typed",
]

MAX_TEXT_BYTES = 64 * 1024 * 1024
"""The largest file that is read whole as one text."""

_T = TypeVar("_T")

_MARKS = (  # UTF-32 first: its little-endian mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 file`, `2 files`, `1,000 files`; `plural` is for nouns that take more than an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def has_mark(data: bytes) -> bool:
    """Does the data begin with the byte-order mark of UTF-8, UTF-16 or UTF-32?"""
    return any(data.startswith(mark) for mark, _ in _MARKS)


def decode_unicode(data: bytes) -> str:
    """Text from UTF-8, or from what a byte-order mark says; the mark is not part of the text.

    Raises UnicodeDecodeError.
    """
    return data.decode(next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8"))


def normal_lines(text: str) -> str:
    """The text with a newline at each end of a line, as every reader of documents sees it."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def lines_of(text: str) -> list[str]:
    r"""The lines between ``\n`` or ``\r\n``, and nothing else: U+2028 stands within a line of JSON."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def read_bounded(path: Path, max_bytes: int = MAX_TEXT_BYTES, otherwise: str = "split it") -> bytes:
    """The bytes of a file or a pipe. Devices have no size and no end, so it is the reading that is bounded.

    Raises OSError, and BadInput for more than `max_bytes`, which says what to do `otherwise`.
    """
    with path.open("rb") as file:
        return _bounded(file, str(path), max_bytes, otherwise)


def read_text(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """A whole text file, with newlines at the ends of lines.

    Raises BadInput for a file that is missing, larger than `max_bytes`, or not Unicode.
    """
    try:
        return _text(read_bounded(path, max_bytes), str(path))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror or error})") from error


def read_typed(max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Standard input by the same rules as a file. Raises BadInput."""
    return _text(
        _bounded(sys.stdin.buffer, "standard input", max_bytes, "split it"), "standard input"
    )


def _bounded(file: BinaryIO, name: str, max_bytes: int, otherwise: str) -> bytes:
    data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise BadInput(f"{name}: longer than {max_bytes:,} bytes, which are the limit; {otherwise}")
    return data


def _text(data: bytes, name: str) -> str:
    try:
        return normal_lines(decode_unicode(data))
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{name}: not UTF-8 text ({error}); save it as UTF-8, e.g. iconv -f windows-1252 -t utf-8"
        ) from error


def read_json_lines(path: Path, kind: type[_T]) -> list[_T]:
    """A JSON object a line, each of the struct `kind`. Raises BadInput, with the line, for anything else."""
    names = ", ".join(kind.__annotations__)
    found = []
    for number, line in enumerate(lines_of(read_text(path)), 1):
        try:
            found.append(msgspec.json.decode(line, type=kind))
        except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError) as error:
            raise BadInput(
                f"{path}, line {number}: {error}; give a JSON object with {names} on each line"
            ) from error
    if not found:
        raise BadInput(f"{path} is empty; give a JSON object with {names} on each line")
    return found
