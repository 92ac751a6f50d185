"""Traces of lookups: what was asked of a store and when, without a word of the text.

One JSON object a line, in the format that Mooncake published (Qin et al., Mooncake: a KVCache-centric
disaggregated architecture for LLM serving, FAST 2025): `timestamp` in milliseconds, `input_length`,
`output_length` and `hash_ids`, one name a block, where a name stands for the block and all before it.
Ours add `block_tokens` (the longest block, 512 where it is not said) and `salt`.

Also read: CSV files with the columns TIMESTAMP, ContextTokens and GeneratedTokens, as Azure
published them.  They do not say which text is the same, so their requests name no blocks.
"""

from __future__ import annotations

import codecs
import csv
import datetime as dt
import gzip
import math
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from kdn.clock import Clock
from kdn.core import BLOCK_TOKENS, BlockKey, chain_hashes
from kdn.errors import BadInput
from kdn.machine.files import refuse_special, system_errors
from kdn.store.policies import Use

__all__ = ["LookupRecorder", "TraceRequest", "read_trace"]

MOONCAKE_BLOCK_TOKENS = 512
_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


class TraceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request: when, how long, and the names of its blocks."""

    timestamp: float
    """Milliseconds since the trace began."""
    input_length: int
    output_length: int = 0
    hash_ids: tuple[int | str, ...] = ()
    block_tokens: int = MOONCAKE_BLOCK_TOKENS
    salt: str = ""

    @property
    def at_s(self) -> float:
        return self.timestamp / 1000

    def uses(self, token_bytes: int) -> list[Use]:
        """Its blocks in order. Every block takes the room of a full one, as pages do."""
        size_bytes = self.block_tokens * token_bytes
        return [
            Use(
                key=BlockKey(str(name)),
                start=number * self.block_tokens,
                num_tokens=min(self.block_tokens, self.input_length - number * self.block_tokens),
                size_bytes=size_bytes,
                at_s=self.at_s,
                salt=self.salt,
            )
            for number, name in enumerate(self.hash_ids)
        ]


@dataclass(frozen=True)
class _Place:
    path: Path
    line: int

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}"


def read_trace(path: Path) -> list[TraceRequest]:
    """The requests of a `.jsonl` or `.csv` file, or the `.gz` of one, in order of time.

    Raises BadInput, naming file and line, for what is no such trace.
    """
    try:
        with _open(path) as lines:
            is_csv = ".csv" in map(str.lower, path.suffixes)
            found = _decode_csv(path, lines) if is_csv else list(_decode(path, lines))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        raise BadInput(f"{path}: the trace cannot be read: {error}") from error
    if not found:
        raise BadInput(f"{path}: the trace has no requests")
    return sorted(found, key=lambda request: request.timestamp)


def _open(path: Path) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]  # a GzipFile reads like a file
    return path.open("rb")


def _decode(path: Path, lines: IO[bytes]) -> Iterator[TraceRequest]:
    decoder = msgspec.json.Decoder(TraceRequest)
    for number, line in enumerate(lines, 1):
        text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if not text.strip():
            continue
        try:
            request = decoder.decode(text)
        except (msgspec.DecodeError, RecursionError) as error:
            raise BadInput(f"{_Place(path, number)}: no request of a trace: {error}") from error
        _validate(request, _Place(path, number))
        yield request


def _decode_csv(path: Path, lines: IO[bytes]) -> list[TraceRequest]:
    """The requests of a table, in its order; time begins at the earliest of them."""
    reader = csv.reader(
        line.decode("utf-8-sig" if not n else "utf-8") for n, line in enumerate(lines)
    )
    columns = _columns(path, next(reader, []))
    found: list[tuple[_Place, float, int, int]] = []
    for cells in reader:
        place = _Place(path, reader.line_num)
        if not cells:
            continue
        try:
            at, asked, answered = (cells[column].strip() for column in columns)
            found.append((place, _seconds(at), _whole(asked), _whole(answered)))
        except (IndexError, ValueError) as error:
            raise BadInput(f"{place}: no request of a trace: {error}") from error
    started_s = min((at_s for _, at_s, _, _ in found), default=0.0)
    requests = []
    for place, at_s, asked_tokens, answered_tokens in found:
        request = TraceRequest(
            timestamp=round((at_s - started_s) * 1000, 3),
            input_length=asked_tokens,
            output_length=answered_tokens,
        )
        _validate(request, place)
        requests.append(request)
    return requests


def _columns(path: Path, header: Sequence[str]) -> list[int]:
    """Where the three columns stand, whatever the case of their names."""
    names = [name.strip().lower() for name in header]
    missing = [wanted for wanted in _COLUMNS if wanted.lower() not in names]
    if missing:
        raise BadInput(
            f"{path}, line 1: a trace has the columns {', '.join(_COLUMNS)}; {missing[0]} is not"
            f" among {', '.join(header) or 'none'}"
        )
    return [names.index(wanted.lower()) for wanted in _COLUMNS]


def _seconds(text: str) -> float:
    """A date with a time of day (UTC unless it says otherwise), or plain seconds."""
    try:
        at_s = float(text)
    except ValueError:
        at = dt.datetime.fromisoformat(text)
        return (at if at.tzinfo else at.replace(tzinfo=dt.UTC)).timestamp()
    if not math.isfinite(at_s):
        raise ValueError(f"{text!r} is no time")
    return at_s


def _whole(text: str) -> int:
    """A number of tokens; spreadsheets write 374 as 374.0."""
    number = float(text)
    if not number.is_integer():
        raise ValueError(f"{text[:40]!r} is no whole number of tokens")
    return int(number)


def _validate(request: TraceRequest, place: _Place) -> None:
    lengths = (request.timestamp, request.input_length, request.output_length)
    if min(lengths) < 0 or request.block_tokens < 1:
        raise BadInput(f"{place}: times and lengths cannot be negative, nor a block empty")
    most = -(-request.input_length // request.block_tokens)
    if len(request.hash_ids) > most:
        raise BadInput(
            f"{place}: {request.input_length} tokens make at most {most} blocks of"
            f" {request.block_tokens}, {len(request.hash_ids)} are named"
        )


class LookupRecorder:
    """Writes every lookup to a file as it happens. Safe from several threads; `close` it.

    What is written are lengths, times and hashes of tokens; equal prompts of different salts have
    different names.
    """

    def __init__(self, path: Path, clock: Clock, block_tokens: int = BLOCK_TOKENS) -> None:
        """Raises StoreError where nothing can be written, BadInput for a pipe, a device or a folder."""
        refuse_special(path)
        self._lock = threading.Lock()
        self._clock = clock
        self._block_tokens = block_tokens
        with system_errors(f"recording lookups in {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
        self._started_s = clock.now()

    def note(self, token_ids: Sequence[int], salt: str = "", output_tokens: int = 0) -> None:
        """A prompt was looked up now."""
        cuts = [*range(self._block_tokens, len(token_ids), self._block_tokens), len(token_ids)]
        names = tuple(f"{salt}/{name[:20]}" for name in chain_hashes(token_ids, cuts))
        request = TraceRequest(
            timestamp=(self._clock.now() - self._started_s) * 1000,
            input_length=len(token_ids),
            output_length=output_tokens,
            hash_ids=names,
            block_tokens=self._block_tokens,
            salt=salt,
        )
        with self._lock:
            self._file.write(msgspec.json.encode(request) + b"\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()
