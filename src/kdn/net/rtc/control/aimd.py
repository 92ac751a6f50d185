"""GCC's rate side: what was acknowledged, the capacity it hints at, and how the rate moves.

Rates are bit/s, times milliseconds.  Constants are WebRTC's.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from math import sqrt

from kdn.net.rtc.control.delay import LinkUsage

__all__ = ["AckedBitrate", "Aimd", "Capacity", "LossController", "RatePhase"]

_BETA = 0.85
_PER_S = 1.08
_LEAST_GAIN = 1000.0
_FRAME_S = 1.0 / 30.0
_MTU_BITS = 1200 * 8.0


@dataclass
class AckedBitrate:
    """The rate at which packets arrive: a Bayesian blend of windows of 500, then 150 ms."""

    bps: float | None = None
    _var: float = 50.0
    _window_ms: float = 500.0
    _sum: float = 0.0
    _passed: float = 0.0
    _before: float | None = None

    def add(self, arrival_ms: float, size: int) -> None:
        """One packet, in order of arrival."""
        sample = self._sample(arrival_ms, size)
        if sample is None:
            return
        if self.bps is None:
            self.bps = sample
            return
        kbps, seen = self.bps / 1000.0, sample / 1000.0
        spread = 10.0 * abs(kbps - seen) / (kbps + min(seen, 0.0)) if kbps else 10.0
        sample_var = spread**2
        predicted = self._var + 5.0
        total = sample_var + predicted
        self.bps = 1000.0 * max((sample_var * kbps + predicted * seen) / total, 0.0)
        self._var = sample_var * predicted / total

    def _sample(self, arrival_ms: float, size: int) -> float | None:
        """The window's rate once it is over."""
        if self._before is not None:
            self._passed += max(arrival_ms - self._before, 0.0)
            if arrival_ms - self._before > self._window_ms:
                self._sum, self._passed = 0.0, (arrival_ms - self._before) % self._window_ms
        self._before = arrival_ms
        sample = None
        if self._passed >= self._window_ms:
            sample = 8000.0 * self._sum / self._window_ms
            self._passed -= self._window_ms
            self._sum = 0.0
            self._window_ms = 150.0
        self._sum += size
        return sample


@dataclass
class Capacity:
    """What the link seems to carry, learned where it was overused."""

    kbps: float | None = None
    var: float = 0.4

    def note(self, bps: float, weight: float = 0.05) -> None:
        """The acknowledged rate at an overuse (weight 0.05) or of a probe (0.5)."""
        sample = bps / 1000.0
        if self.kbps is None:
            self.kbps = sample
        else:
            self.kbps += weight * (sample - self.kbps)
        error = self.kbps - sample
        self.var += weight * (error * error / max(self.kbps, 1.0) - self.var)
        self.var = min(max(self.var, 0.4), 2.5)

    def bounds_bps(self) -> tuple[float, float]:
        """Three deviations around the estimate; all rates when there is none."""
        if self.kbps is None:
            return 0.0, float("inf")
        reach = 3.0 * sqrt(self.var * self.kbps)
        return 1000.0 * max(self.kbps - reach, 0.0), 1000.0 * (self.kbps + reach)


class RatePhase(Enum):
    """What the rate does."""

    HOLD = "hold"
    INCREASE = "increase"
    DECREASE = "decrease"


@dataclass
class Aimd:
    """Additive or multiplicative increase, multiplicative decrease."""

    bps: float
    phase: RatePhase = RatePhase.HOLD
    capacity: Capacity = field(default_factory=Capacity)
    _changed: float | None = None
    _decreased: float = -1e9

    def update(
        self, usage: LinkUsage, acked_bps: float | None, rtt_ms: float, now_ms: float
    ) -> float:
        """The rate after one report."""
        self._move(usage)
        acked = acked_bps if acked_bps is not None else self.bps
        if self.phase is RatePhase.INCREASE:
            self._increase(acked, rtt_ms, now_ms)
        elif self.phase is RatePhase.DECREASE:
            if self._may_decrease(acked, rtt_ms, now_ms):
                self._decrease(acked)
                self._decreased = now_ms
            self.phase = RatePhase.HOLD
        self._changed = now_ms
        return self.bps

    def _move(self, usage: LinkUsage) -> None:
        if usage is LinkUsage.OVER:
            self.phase = RatePhase.DECREASE
        elif usage is LinkUsage.UNDER:
            self.phase = RatePhase.HOLD
        elif self.phase is RatePhase.HOLD:
            self.phase = RatePhase.INCREASE

    def _increase(self, acked: float, rtt_ms: float, now_ms: float) -> None:
        _, high = self.capacity.bounds_bps()
        if acked > high:
            self.capacity = Capacity()
        limit = 1.5 * acked + 10e3
        if self.bps >= limit:
            return
        passed_s = (
            min(now_ms - self._changed, 1000.0) / 1000.0 if self._changed is not None else 0.0
        )
        if self.capacity.kbps is None:
            gain = max(self.bps * (_PER_S**passed_s - 1.0), _LEAST_GAIN)
        else:
            gain = self.gain_per_s(rtt_ms) * passed_s
        self.bps = min(self.bps + gain, limit)

    def gain_per_s(self, rtt_ms: float) -> float:
        """Additive increase: half a packet per response time (round trip and 100 ms)."""
        frame_bits = self.bps * _FRAME_S
        packets = max(-(-frame_bits // _MTU_BITS), 1.0)
        response_s = (rtt_ms + 100.0) / 1000.0
        return max(4000.0, frame_bits / packets / (2.0 * response_s))

    def _may_decrease(self, acked: float, rtt_ms: float, now_ms: float) -> bool:
        wait = min(max(rtt_ms, 10.0), 200.0)
        return now_ms - self._decreased >= wait or acked < self.bps / 2.0

    def _decrease(self, acked: float) -> None:
        low, _ = self.capacity.bounds_bps()
        target = _BETA * acked
        if target > self.bps and self.capacity.kbps is not None:
            target = _BETA * 1000.0 * self.capacity.kbps
        self.bps = min(target, self.bps)
        if self.capacity.kbps is not None and acked < low:
            self.capacity = Capacity()
        self.capacity.note(acked)


@dataclass
class LossController:
    """The share of lost packets: up below 2 %, down above 10 %, at most once in 300 ms and a round trip."""

    bps: float
    _packets: int = 0
    _lost: int = 0
    _decreased: float = -1e9
    _history: deque[tuple[float, float]] = field(default_factory=deque)

    def update(self, packets: int, lost: int, rtt_ms: float, now_ms: float) -> float:
        """The rate after a report about so many packets, of which some were lost."""
        self._packets += packets
        self._lost += lost
        if self._packets < 20:
            return self.bps
        share = self._lost / self._packets
        self._packets = self._lost = 0
        self._remember(now_ms)
        if share <= 0.02:
            self.bps = 1.08 * min(bps for _, bps in self._history) + 1000.0
        elif share > 0.10 and now_ms - self._decreased >= 300.0 + rtt_ms:
            self.bps *= 1.0 - 0.5 * share
            self._decreased = now_ms
        return self.bps

    def restart(self, bps: float) -> None:
        """Go on from a rate that was measured: what was sent before it bounds no growth."""
        self.bps = bps
        self._history.clear()

    def _remember(self, now_ms: float) -> None:
        while self._history and now_ms - self._history[0][0] > 1000.0:
            self._history.popleft()
        while self._history and self.bps <= self._history[-1][1]:
            self._history.pop()
        self._history.append((now_ms, self.bps))
