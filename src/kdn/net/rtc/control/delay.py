"""GCC's delay side (WebRTC, as of AlphaRTC): groups of packets, a trend line, a detector of overuse.

Times are milliseconds.  Constants are WebRTC's.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

__all__ = ["DelayStep", "Detector", "InterArrival", "LinkUsage", "Trendline"]

_GROUP_MS = 5.0
_JUMP_MS = 3000.0
_WINDOW = 20
_SMOOTH = 0.9
_GAIN = 4.0
_MOST_DELTAS = 60
_OVERUSE_MS = 10.0
_K_UP, _K_DOWN = 0.0087, 0.039
_FAR = 15.0
_LEAST, _MOST = 6.0, 600.0


class LinkUsage(Enum):
    """What the delay says of the link."""

    NORMAL = "normal"
    OVER = "overuse"
    UNDER = "underuse"


class DelayStep(NamedTuple):
    """From one group of packets to the next."""

    send_ms: float
    arrival_ms: float
    at_ms: float
    """When the newer group had arrived."""


@dataclass
class _Group:
    first_send: float
    last_send: float
    last_arrival: float


@dataclass
class InterArrival:
    """Joins packets that were sent within 5 ms, and compares one group with the next."""

    _current: _Group | None = None
    _before: _Group | None = None
    _reordered: int = 0

    def add(self, send_ms: float, arrival_ms: float) -> DelayStep | None:
        """A packet; the step between the two last whole groups when it begins a new one."""
        now = self._current
        if now is None:
            self._current = _Group(send_ms, send_ms, arrival_ms)
            return None
        if send_ms < now.first_send:
            self._reorder()
            return None
        if self._belongs(now, send_ms, arrival_ms):
            now.last_send = max(now.last_send, send_ms)
            now.last_arrival = arrival_ms
            return None
        step = None
        if self._before is not None:
            gap = now.last_arrival - self._before.last_arrival
            sent = now.last_send - self._before.last_send
            if gap - sent > _JUMP_MS or gap < 0:
                self.__init__()  # type: ignore[misc]
                return None
            step = DelayStep(sent, gap, now.last_arrival)
        self._reordered = 0
        self._before, self._current = now, _Group(send_ms, send_ms, arrival_ms)
        return step

    def _belongs(self, group: _Group, send_ms: float, arrival_ms: float) -> bool:
        """Sent with the group, or caught up with it on the way: a burst."""
        if send_ms - group.first_send <= _GROUP_MS:
            return True
        gap = arrival_ms - group.last_arrival
        return gap <= _GROUP_MS and gap - (send_ms - group.last_send) < 0

    def _reorder(self) -> None:
        self._reordered += 1
        if self._reordered >= 3:
            self.__init__()  # type: ignore[misc]


@dataclass
class Trendline:
    """The slope of the smoothed, accumulated delay over the last twenty steps."""

    num_steps: int = 0
    _sum: float = 0.0
    _smooth: float = 0.0
    _first: float | None = None
    _points: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_WINDOW))

    def add(self, step: DelayStep) -> float:
        """The slope after this step, in ms per ms; 0 until twenty are known."""
        if self._first is None:
            self._first = step.at_ms
        self.num_steps += 1
        self._sum += step.arrival_ms - step.send_ms
        self._smooth = _SMOOTH * self._smooth + (1.0 - _SMOOTH) * self._sum
        self._points.append((step.at_ms - self._first, self._smooth))
        if len(self._points) < _WINDOW:
            return 0.0
        mean_x = sum(x for x, _ in self._points) / _WINDOW
        mean_y = sum(y for _, y in self._points) / _WINDOW
        below = sum((x - mean_x) ** 2 for x, _ in self._points)
        above = sum((x - mean_x) * (y - mean_y) for x, y in self._points)
        return above / below if below else 0.0

    def modified(self, slope: float) -> float:
        """The slope on the detector's scale."""
        return min(self.num_steps, _MOST_DELTAS) * slope * _GAIN


@dataclass
class Detector:
    """Tells overuse by a threshold that adapts to what the trend usually does."""

    threshold: float = 12.5
    usage: LinkUsage = LinkUsage.NORMAL
    _over_ms: float | None = None
    _count: int = 0
    _slope: float = 0.0
    _at: float | None = None

    def add(self, trend: float, slope: float, send_ms: float, now_ms: float) -> LinkUsage:
        """One trend (on the detector's scale), over a step of `send_ms`."""
        if trend > self.threshold:
            self._over(slope, send_ms)
        else:
            self._over_ms, self._count = None, 0
            self.usage = LinkUsage.UNDER if trend < -self.threshold else LinkUsage.NORMAL
        self._slope = slope
        self._adapt(trend, now_ms)
        return self.usage

    def _over(self, slope: float, send_ms: float) -> None:
        self._over_ms = send_ms / 2.0 if self._over_ms is None else self._over_ms + send_ms
        self._count += 1
        if self._over_ms > _OVERUSE_MS and self._count > 1 and slope >= self._slope:
            self._over_ms, self._count = 0.0, 0
            self.usage = LinkUsage.OVER

    def _adapt(self, trend: float, now_ms: float) -> None:
        """The threshold follows the trend, slowly up and faster down; far outliers are not followed."""
        before, self._at = self._at, now_ms
        size = abs(trend)
        if size > self.threshold + _FAR:
            return
        gain = _K_DOWN if size < self.threshold else _K_UP
        passed = min(now_ms - before, 100.0) if before is not None else 0.0
        self.threshold += gain * (size - self.threshold) * passed
        self.threshold = min(max(self.threshold, _LEAST), _MOST)
