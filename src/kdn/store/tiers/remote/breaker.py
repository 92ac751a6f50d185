"""A circuit breaker: after failures a tier is not asked for a while, so that it costs nothing meanwhile.

closed ──failures──> open ──time is over──> trying ──success──> closed
                      ^                        │
                      └────────failure─────────┘ (the time doubles)
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import StrEnum
from random import Random

from kdn.clock import Clock

__all__ = ["Breaker", "BreakerSettings", "Phase"]


class Phase(StrEnum):
    """Whether a tier is asked."""

    CLOSED = "closed"
    OPEN = "open"
    TRYING = "trying"


_MOVES = {
    Phase.CLOSED: {Phase.OPEN},
    Phase.OPEN: {Phase.TRYING},
    Phase.TRYING: {Phase.OPEN, Phase.CLOSED},
}


@dataclass(frozen=True)
class BreakerSettings:
    """When to stop asking, and for how long."""

    failures: int = 3
    """Failures in a row that open it."""
    open_s: float = 1.0
    """How long it is open at first; that doubles with every trial that fails."""
    max_open_s: float = 60.0


class Breaker:
    """Says whether to ask. Safe from several threads.

    That time is stretched by up to a quarter at random, so that many engines do not come back together.
    """

    def __init__(self, settings: BreakerSettings, clock: Clock, rng: Random) -> None:
        self._settings = settings
        self._clock = clock
        self._rng = rng
        self._lock = threading.Lock()
        self._phase = Phase.CLOSED
        self._failed = 0
        self._open_s = settings.open_s
        self._until = 0.0

    @property
    def phase(self) -> Phase:
        return self._phase

    def is_open(self) -> bool:
        """Would `enter` say no just now? Changes nothing."""
        with self._lock:
            return self._refuses()

    def enter(self) -> bool:
        """May the tier be asked now? Once it was open long enough, the first caller makes the trial."""
        with self._lock:
            if self._refuses():
                return False
            if self._phase is Phase.OPEN:
                self._move(Phase.TRYING)
                self._until = (
                    self._clock.now() + self._open_s
                )  # a trial that never ends is a failure
            return True

    def succeeded(self) -> None:
        with self._lock:
            self._failed = 0
            if self._phase is Phase.TRYING:
                self._move(Phase.CLOSED)
                self._open_s = self._settings.open_s

    def failed(self) -> None:
        with self._lock:
            self._failed += 1
            if self._phase is Phase.TRYING:
                self._open_s = min(2 * self._open_s, self._settings.max_open_s)
                self._open()
            elif self._phase is Phase.CLOSED and self._failed >= self._settings.failures:
                self._open()

    def _refuses(self) -> bool:
        return self._phase is not Phase.CLOSED and self._clock.now() < self._until

    def _open(self) -> None:
        self._move(Phase.OPEN)
        self._until = self._clock.now() + self._open_s * (1 + self._rng.random() / 4)

    def _move(self, to: Phase) -> None:
        assert to in _MOVES[self._phase], f"a breaker cannot go from {self._phase} to {to}"
        self._phase = to
