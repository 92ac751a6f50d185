"""How quick tiers are, from the reads that were made."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kdn.clock import Clock

__all__ = ["Links"]

FADE = 0.9
"""What an old read counts for beside a new one: about the last ten reads decide."""


@dataclass
class _Group:
    """Reads side by side of which no bytes were noted yet."""

    since_s: float
    running: int = 0
    most: int = 0
    """How many of them ran together."""
    ended: int = 0
    num_bytes: int = 0


class Links:
    """Bytes per second of each tier, from reads under load. Safe from several threads."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._lock = threading.Lock()
        self._sums: dict[str, tuple[float, float]] = {}
        self._last: dict[str, float] = {}
        self._groups: dict[str, _Group] = {}

    def note(self, tier: str, num_bytes: int, seconds: float) -> None:
        """A read of `num_bytes` took so long."""
        with self._lock:
            self._note(tier, num_bytes, seconds)

    @contextmanager
    def side_by_side(self, tier: str, moved_bytes: Callable[[], int]) -> Iterator[None]:
        """A read, which may have others beside it: together they take their time once.

        Once it is over `moved_bytes` tells how much it was.
        """
        with self._lock:
            group = self._groups.get(tier)
            if group is None or not group.running:
                group = self._groups[tier] = _Group(self.clock.now())
            group.running += 1
            group.most = max(group.most, group.running)
        came = 0
        try:
            yield
            came = moved_bytes()
        finally:
            with self._lock:
                self._end(tier, group, came)

    def _end(self, tier: str, group: _Group, num_bytes: int) -> None:
        """Reads that share a link end nearly together: only all of them together show its speed."""
        group.running -= 1
        group.ended += 1
        group.num_bytes += num_bytes
        if group.running and group.ended < group.most:
            return
        now_s = self.clock.now()
        if group.num_bytes:
            self._note(tier, group.num_bytes, now_s - group.since_s)
            group.since_s, group.num_bytes = now_s, 0
        group.ended, group.most = 0, group.running

    def _note(self, tier: str, num_bytes: int, seconds: float) -> None:
        old_bytes, old_s = self._sums.get(tier, (0.0, 0.0))
        self._sums[tier] = (FADE * old_bytes + num_bytes, FADE * old_s + seconds)
        if seconds > 0:
            self._last[tier] = num_bytes / seconds

    def forget(self, tier: str) -> None:
        """As if nothing had been read from it."""
        with self._lock:
            self._sums.pop(tier, None)
            self._last.pop(tier, None)

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
