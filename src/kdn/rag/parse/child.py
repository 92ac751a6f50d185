"""The program of the parser process: requests on standard input, documents on standard output.

Its parsers are foreign code over foreign bytes, so it may not write files, nor hold more memory or
compute longer than `kdn.rag.bounds` says.  The system ends it when it does.
"""

from __future__ import annotations

import math
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import msgspec

from kdn.errors import DocumentError
from kdn.rag.bounds import PARSER_MEMORY_BYTES
from kdn.rag.documents import ParsedDocument

__all__ = ["ParseReply", "ParseRequest", "read_message", "write_message"]

_LENGTH_BYTES = 8


class ParseRequest(msgspec.Struct, frozen=True):
    """A file to parse, within so many seconds of processor time."""

    path: str
    data: bytes
    named: bool
    allowed_s: float


class ParseReply(msgspec.Struct, frozen=True):
    """A document, or the reason why there is none."""

    document: ParsedDocument | None = None
    refusal: str = ""


def write_message(file: BinaryIO, message: msgspec.Struct) -> None:
    """One message after its length. Raises OSError when the reader has gone."""
    data = msgspec.msgpack.encode(message)
    file.write(len(data).to_bytes(_LENGTH_BYTES, "little"))
    file.write(data)
    file.flush()


def read_message(file: BinaryIO) -> bytes | None:
    """The bytes of one message; None where the other side ended before it was whole."""
    head = file.read(_LENGTH_BYTES)
    if len(head) < _LENGTH_BYTES:
        return None
    size = int.from_bytes(head, "little")
    data = file.read(size)
    return data if len(data) == size else None


def main() -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what parsers print is no answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this
    for limit, most in (
        (resource.RLIMIT_DATA, PARSER_MEMORY_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        with suppress(OSError, ValueError):  # a system that has no such limit, or a lower one
            resource.setrlimit(limit, (most, most))
    while (data := read_message(sys.stdin.buffer)) is not None:
        write_message(answers, _answer(msgspec.msgpack.decode(data, type=ParseRequest)))


def _answer(request: ParseRequest) -> ParseReply:
    from kdn.rag.parse import parse

    most_s = math.ceil(time.process_time() + request.allowed_s)
    with suppress(OSError, ValueError):
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (most_s, hard))
    try:
        return ParseReply(parse(Path(request.path), request.data, named=request.named))
    except DocumentError as error:
        return ParseReply(refusal=str(error))
    except MemoryError:
        mib = PARSER_MEMORY_BYTES >> 20
        return ParseReply(
            refusal=f"{request.path}: to parse it takes more than {mib:,} MiB; split it"
        )


if __name__ == "__main__":
    main()
