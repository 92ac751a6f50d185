"""Time as an argument. Only this file and the server read the machine's clock."""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["Clock", "ManualClock", "SystemClock"]


class Clock(Protocol):
    """Seconds that never go back (`now`) and seconds since 1970 (`wall`)."""

    def now(self) -> float:
        """Monotonic seconds: for durations and deadlines."""

    def wall(self) -> float:
        """Seconds since the epoch: for what is written down (ages, expiries)."""


class SystemClock:
    """The machine's clocks: its own functions, since every layer of every pass reads one."""

    now = staticmethod(time.perf_counter)
    wall = staticmethod(time.time)


class ManualClock:
    """A clock that moves only when told to, so that a test needs no waiting."""

    def __init__(self, now_s: float = 0.0, wall_s: float = 1_700_000_000.0) -> None:
        self._now_s = now_s
        self._wall_s = wall_s

    def now(self) -> float:
        return self._now_s

    def wall(self) -> float:
        return self._wall_s

    def advance(self, seconds: float) -> None:
        """Move both clocks forward. Raises ValueError for a negative step."""
        if seconds < 0:
            raise ValueError(f"a clock cannot go back: asked to advance by {seconds} s")
        self._now_s += seconds
        self._wall_s += seconds
