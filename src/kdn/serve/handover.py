"""Calls from the engine's thread to the event loop: the loop is woken once for all that come together."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import ClassVar
from weakref import WeakKeyDictionary, ref

__all__ = ["Handover"]


class Handover:
    """Runs calls on an event loop, in order. Any thread may hand them over.

    `call_soon_threadsafe` wakes the loop for each call, by a byte through a socket: with 24 answers a step of
    the engine woke it 24 times, and each time both threads wanted the interpreter.
    """

    _of: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, Handover]] = WeakKeyDictionary()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = ref(loop)
        self._lock = threading.Lock()
        self._calls: list[Callable[[], None]] = []

    @staticmethod
    def here() -> Handover:
        """The one of the running loop."""
        loop = asyncio.get_running_loop()
        return Handover._of.setdefault(loop, Handover(loop))

    def call(self, call: Callable[[], None]) -> None:
        """Run `call` soon; a loop that is closed runs nothing any more."""
        with self._lock:
            self._calls.append(call)
            is_first = len(self._calls) == 1
        loop = self._loop()
        if is_first and loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._run)

    def _run(self) -> None:
        with self._lock:
            calls, self._calls = self._calls, []
        for call in calls:
            call()
