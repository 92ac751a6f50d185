"""The time of a prompt, measured while nobody asks for anything."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from typing import Protocol

from kdn.core import JctModel
from kdn.errors import KdnError
from kdn.trace import Trace

__all__ = ["IdleFit", "Meter"]

_ROUNDS = 3
_LOOKS = 8
"""How often it is looked whether somebody came, in the time that must pass without."""


class Meter(Protocol):
    """What measures: `kdn.timing.JctMeter`, or a stand-in for tests."""

    points: list[tuple[int, int, int]]

    def measure(self, point: tuple[int, int, int]) -> None:
        """One pass; the first of each kind only warms up."""
        ...

    def fit(self) -> JctModel:
        """The model of what was measured."""
        ...

    def close(self) -> None:
        """Throw everything away."""
        ...


class IdleFit:
    """Measures once, in a thread of its own, after requests have come and none has for a while.

    A request that comes meanwhile waits for one prompt of the grid at most; measuring goes on when
    it is idle again.  `close` ends it in the same time, and nothing is kept of a fit that was not
    finished.
    """

    def __init__(
        self,
        meter: Callable[[], Meter],
        num_requests: Callable[[], int],
        is_idle: Callable[[], bool],
        keep: Callable[[JctModel], None],
        after_s: float,
        trace: Trace,
    ) -> None:
        """`num_requests` counts all that ever came; `keep` is given the fit."""
        self._meter = meter
        self._num_requests = num_requests
        self._is_idle = is_idle
        self._keep = keep
        self._look_s = after_s / _LOOKS
        self._trace = trace
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kdn-idle-fit", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop. Calling it twice is harmless."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        if not self._stays_idle():
            return
        try:
            with closing(self._meter()) as meter:
                for _ in range(_ROUNDS + 1):
                    for point in meter.points:
                        if not self._is_idle() and not self._stays_idle():
                            return
                        if self._closing.is_set():
                            return
                        meter.measure(point)
                found = meter.fit()
            self._keep(found)
        except KdnError as error:
            self._trace.event("jct.fit", why=str(error))
            return
        self._trace.event("jct.fit", error=found.error)

    def _stays_idle(self) -> bool:
        """Wait until there were requests and none for a while; False when it is closed first."""
        quiet, seen = 0, 0
        while quiet < _LOOKS:
            if self._closing.wait(self._look_s):
                return False
            now = self._num_requests()
            quiet = quiet + 1 if now and now == seen and self._is_idle() else 0
            seen = now
        return True
