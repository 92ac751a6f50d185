"""How fast each tier gives, as measured by the loads that went over it."""

from __future__ import annotations

import threading

from kdn.clock import Clock
from kdn.store.block.handle import Handle

__all__ = ["Links", "TimedHandle"]

FADE = 0.9
"""What an old read counts for beside a new one: about the last ten reads decide."""


class Links:
    """Bytes per second of each tier, from reads under load. Safe from several threads."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._lock = threading.Lock()
        self._sums: dict[str, tuple[float, float]] = {}
        self._last: dict[str, float] = {}

    def note(self, tier: str, num_bytes: int, seconds: float) -> None:
        """A read of `num_bytes` took so long."""
        with self._lock:
            old_bytes, old_s = self._sums.get(tier, (0.0, 0.0))
            self._sums[tier] = (FADE * old_bytes + num_bytes, FADE * old_s + seconds)
            if seconds > 0:
                self._last[tier] = num_bytes / seconds

    def bytes_per_s(self, tier: str) -> float | None:
        """What the tier gave lately; None when nothing was read from it yet."""
        with self._lock:
            num_bytes, seconds = self._sums.get(tier, (0.0, 0.0))
        return num_bytes / seconds if seconds > 0 else None

    def last_bytes_per_s(self, tier: str) -> float | None:
        """What the tier's last read gave: it shows a change immediately."""
        with self._lock:
            return self._last.get(tier)

    def all(self) -> dict[str, float]:
        """Bytes per second by tier, of those that were read from."""
        with self._lock:
            return {tier: b / s for tier, (b, s) in self._sums.items() if s > 0}


class TimedHandle(Handle):
    """A handle whose reads are timed."""

    def __init__(self, handle: Handle, tier: str, links: Links) -> None:
        self._handle = handle
        self._tier = tier
        self._links = links
        self.buffer = handle.buffer
        self.header = handle.header

    def read(self, start: int, stop: int) -> memoryview:
        started_s, before = self._links.clock.now(), self._handle.moved_bytes
        data = self._handle.read(start, stop)
        after = self._handle.moved_bytes
        # a read that reached ahead moved more than was asked for, and the next one nothing
        moved = stop - start if before is None or after is None else after - before
        if moved:
            self._links.note(self._tier, moved, self._links.clock.now() - started_s)
        return data

    def is_read(self, start: int, stop: int) -> bool:
        return self._handle.is_read(start, stop)

    def close(self) -> None:
        self._handle.close()
