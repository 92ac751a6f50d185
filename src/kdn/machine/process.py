"""This process as others see it: its arguments, and how it ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

__all__ = [
    "INTERRUPTED",
    "Terminated",
    "end_if_closed",
    "hide_arguments",
    "stop_code",
    "unwind_on_sigterm",
    "will_end_closed",
]

INTERRUPTED = 128 + signal.SIGINT
"""The exit code of a program that Ctrl-C ended, as shells have it."""

_ENDS_CLOSED = threading.Event()


class Terminated(KeyboardInterrupt):
    """SIGTERM has come: what stops at Ctrl-C stops at this, too."""


def unwind_on_sigterm() -> None:
    """From now on SIGTERM raises Terminated once in the main thread, so that temporary files are removed.

    Those that follow are ignored: `timeout` sends two, and the second would stop the removing.
    """
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(_signal: int, _frame: object) -> None:
    signal.signal(signal.SIGTERM, lambda *_: None)  # not SIG_IGN, which programs inherit
    raise Terminated


def stop_code(stop: KeyboardInterrupt) -> int:
    """The exit code of a program that Ctrl-C or SIGTERM ended, as shells have it: 130 or 143."""
    return 128 + signal.SIGTERM if isinstance(stop, Terminated) else INTERRUPTED


def will_end_closed() -> None:
    """Say that this program's command closes all that it opens, as those of servers do."""
    _ENDS_CLOSED.set()


def end_if_closed(code: int) -> None:
    """End the process where `will_end_closed` was said, without taking Python apart first.

    Taking torch apart took 1 to 5 s on a busy machine, which is beyond what a stop may take.
    """
    if _ENDS_CLOSED.is_set():
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def hide_arguments(secrets: Sequence[str]) -> bool:
    """Overwrite secrets among this process's arguments, which every user of the machine can list.

    For a moment after the start they could be read.  False where the system does not say where the
    arguments lie (only Linux does).
    """
    try:
        fields = Path("/proc/self/stat").read_text("utf-8").rpartition(")")[2].split()
    except OSError:
        return False
    start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
    if not 0 < start < end:
        return False
    arguments = bytearray(ctypes.string_at(start, end - start))
    for secret in filter(None, secrets):
        encoded = os.fsencode(secret)
        arguments = arguments.replace(encoded, b"*" * len(encoded))
    ctypes.memmove(start, bytes(arguments), end - start)
    return True


_ARG_START, _ARG_END = 45, 46
"""Fields 48 and 49 of proc(5), after the name and from 0."""
