"""Work for later: one background thread, and a bound on the bytes that wait for it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

__all__ = ["WriteBehind"]

Chore = Callable[[], object]


class WriteBehind:
    """Runs chores one after another in a thread of its own, as long as what waits stays bounded.

    A chore handles its own errors.  One that raises all the same costs itself only: another
    thread goes on with the rest.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._moved = threading.Condition()
        self._waiting: deque[tuple[int, Chore]] = deque()
        self._size_bytes = 0
        self._thread: threading.Thread | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the chores that are not done."""
        return self._size_bytes

    def offer(self, size_bytes: int, chore: Chore) -> bool:
        """Take a chore; False when too much waits already."""
        with self._moved:
            if self._size_bytes + size_bytes > self._capacity_bytes:
                return False
            self._waiting.append((size_bytes, chore))
            self._size_bytes += size_bytes
            if self._thread is None:
                self._start()
            return True

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing is left to do; False when that took longer than `timeout_s`."""
        with self._moved:
            return self._moved.wait_for(lambda: self._thread is None, timeout_s)

    def forget(self) -> int:
        """Drop the chores that have not begun; returns how many."""
        with self._moved:
            dropped = len(self._waiting)
            self._size_bytes -= sum(size for size, _ in self._waiting)
            self._waiting.clear()
            return dropped

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._work, name="kdn-store", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        """Do what waits, then end: a thread that has nothing to do does not exist."""
        chore = self._next()
        while chore is not None:
            size_bytes, run = chore
            try:
                run()
            except BaseException:
                self._give_up(size_bytes)
                raise
            with self._moved:
                self._size_bytes -= size_bytes
            chore = self._next()

    def _next(self) -> tuple[int, Chore] | None:
        with self._moved:
            if self._waiting:
                return self._waiting.popleft()
            self._thread = None
            self._moved.notify_all()
            return None

    def _give_up(self, size_bytes: int) -> None:
        with self._moved:
            self._size_bytes -= size_bytes
            self._thread = None
            if self._waiting:
                self._start()
            self._moved.notify_all()
