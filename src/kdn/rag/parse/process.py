"""Foreign parsers at arm's length: one process parses file after file, and may die doing it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

import msgspec

from kdn.errors import DocumentError
from kdn.rag.bounds import PARSER_MEMORY_BYTES
from kdn.rag.documents import ParsedDocument
from kdn.rag.parse import cost_of, parse, parser_for
from kdn.rag.parse.child import ParseReply, ParseRequest, read_message, write_message
from kdn.rag.parse.text import parse_text

__all__ = ["ParserProcess"]


class ParserProcess:
    """Parses files in a process of its own, begun at the first that needs it; `close` it.

    Plain text is split here: that needs no foreign code.  A shared machine may take `wall_factor`
    seconds for one of processor time, before the process counts as hung.
    """

    def __init__(self, wall_factor: float = 6.0) -> None:
        self._wall_factor = wall_factor
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def parse(self, path: Path, data: bytes, *, named: bool = True) -> ParsedDocument:
        """The document in a file's contents.

        Raises DocumentError when there is none in it, when it is larger than its kind may be, and
        when its parser dies, or takes more time or memory than `kdn.rag.bounds` allows.
        """
        parser = parser_for(path, data, named=named)
        cost = cost_of(parser)
        if len(data) > cost.max_bytes:
            raise DocumentError(
                f"{path}: {len(data):,} bytes, and {cost.max_bytes:,} of its kind are parsed; split it"
            )
        if parser is parse_text:
            return parse(path, data, named=named)
        allowed_s = cost.allowed_s(len(data))
        reply = self._ask(ParseRequest(str(path), data, named, allowed_s))
        if reply is None:
            raise DocumentError(f"{path}: {self._why_it_ended(allowed_s)}")
        if reply.document is None:
            raise DocumentError(reply.refusal)
        return reply.document

    def close(self) -> None:
        """End the process."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()

    def _ask(self, request: ParseRequest) -> ParseReply | None:
        """The reply, or None when the process ended or was silent for too long."""
        child = self._child = self._child or _begin()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            write_message(child.stdin, request)  # type: ignore[arg-type]  # a pipe is a BinaryIO
            data = None
            if _wait(child.stdout.fileno(), request.allowed_s * self._wall_factor):
                data = read_message(child.stdout)  # type: ignore[arg-type]
        except OSError:
            data = None
        return None if data is None else msgspec.msgpack.decode(data, type=ParseReply)

    def _why_it_ended(self, allowed_s: float) -> str:
        child, self._child = self._child, None
        assert child is not None
        hung = child.poll() is None and not _ended(child)
        if hung:
            child.kill()
        child.communicate()
        if hung or child.returncode == -signal.SIGXCPU:
            return (
                f"its parser did not end within {allowed_s:.0f} seconds of processor time;"
                " save it as plain text, or split it"
            )
        return (
            f"its parser ended with {_status(child.returncode)} (it may take"
            f" {PARSER_MEMORY_BYTES >> 20:,} MiB); save it as plain text, or split it"
        )


def _begin() -> subprocess.Popen[bytes]:
    # -P: a folder that kdn is started in may not put modules of its own before ours.
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "kdn.rag.parse.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": path},
    )


def _wait(descriptor: int, seconds: float) -> bool:
    """Is there something to read within so many seconds?"""
    poll = select.poll()  # unlike select, for any number of open files
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _ended(child: subprocess.Popen[bytes]) -> bool:
    """Give a process that has closed its answers the moment that its end takes."""
    try:
        child.wait(timeout=1.0)
    except subprocess.TimeoutExpired:
        return False
    return True


def _status(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"status {code}"
