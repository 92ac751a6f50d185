"""This process as others see it: its arguments, and how it ends."""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

__all__ = ["INTERRUPTED", "Ending", "hide_arguments", "will_end_closed"]

INTERRUPTED = 128 + signal.SIGINT
"""The exit code of a program that Ctrl-C ended, as shells have it."""

_ENDS_CLOSED = threading.Event()


def will_end_closed() -> None:
    """Say that this program's command closes all that it opens, threads too, as those of servers do."""
    _ENDS_CLOSED.set()


class Ending:
    """How this program ends: stopped by Ctrl-C or SIGTERM, or by itself. Make it before anything else.

    Either signal raises KeyboardInterrupt, so that what cleans up after one does after the other.  The
    same again within 2 s is one stop: people press twice, and a terminal and a parent may both tell.
    A signal that is ignored, as that of a shell's background job, stays so.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._signal: int | None = None
        self._heard_at = 0.0
        self._code: int | None = None
        for number, usual in _USUAL.items():
            if signal.getsignal(number) is usual:
                signal.signal(number, self._hear)
        self._usual_hook, sys.unraisablehook = sys.unraisablehook, self._show
        atexit.register(self._leave)  # the first that is registered is the last that runs

    @property
    def code(self) -> int | None:
        """The exit code of a stop, 128 and the signal's number; None while nobody asked for one."""
        return None if self._signal is None else 128 + self._signal

    def leave_with(self, code: int) -> None:
        """The program has closed what it opened, and ends with this code once its threads have.

        Threads get a second for it after a stop, and no time after `will_end_closed`.  Python is not taken
        apart: that of torch took 1 to 5 s on a busy machine.
        """
        self._code = code
        if _ENDS_CLOSED.is_set():
            self._leave()
        elif self._signal is not None:
            last = threading.Timer(_THREADS_END_S, self._leave)
            last.daemon = True
            last.start()

    def _hear(self, number: int, _frame: object) -> None:
        if os.getpid() != self._pid:  # a copy of this process ends as others do
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if self._code is not None:
            self._leave()
        before, self._heard_at = self._heard_at, time.monotonic()
        if self._signal is None or self._heard_at - before > _ONE_STOP_S:
            self._signal = self._signal or number
            raise KeyboardInterrupt

    def _show(self, what: sys.UnraisableHookArgs) -> None:
        """What libraries were torn out of by a stop is no news."""
        if self._signal is None:
            self._usual_hook(what)

    def _leave(self) -> None:
        if self._code is not None and os.getpid() == self._pid:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            os._exit(self._code)


_USUAL = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
_ONE_STOP_S = 2.0
_THREADS_END_S = 1.0


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
