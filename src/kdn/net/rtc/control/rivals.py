"""Controllers of other designs: Salsify, Copa, a BBR-like one and FBRA, reduced to a rate per step."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from kdn.net.rtc.call import (
    MAX_RATE_BPS,
    MIN_RATE_BPS,
    PACKET_BYTES,
    START_RATE_BPS,
    Decision,
    Feedback,
)
from kdn.net.rtc.control.window import Interval, Measured
from kdn.net.world.records import MS

__all__ = ["BbrLike", "Copa", "Fbra", "Salsify"]

_PACKET = PACKET_BYTES * 8.0
_STEP_S = 0.05


def _clamped(bps: float) -> float:
    return min(max(bps, MIN_RATE_BPS), MAX_RATE_BPS)


@dataclass
class Salsify:
    """Fouladi et al., NSDI 2018, 3.2: a picture has as many packets as arrive within 100 ms, less
    those in flight.

    The mean gap between arrivals leaves out the sender's own pauses.
    """

    target_ms: float = 100.0
    fps: float = 25.0
    bps: float = START_RATE_BPS
    _gap_ms: float = _PACKET * 1000.0 / START_RATE_BPS
    _before: tuple[float, float] | None = None

    def decide(self, feedback: Feedback) -> Decision:
        for ack in feedback.acks:
            sent, arrived = float(ack["t_send"]) / MS, float(ack["t_deliver"]) / MS
            if self._before is not None:
                share = float(ack["size"]) * 8.0 / _PACKET
                own = max(sent - self._before[0] - share * _PACKET * 1000.0 / self.bps, 0.0)
                gap = max(arrived - self._before[1] - own, 0.0) / max(share, 0.1)
                self._gap_ms += 0.1 * (min(gap, 500.0) - self._gap_ms)
            self._before = sent, arrived
        flying = feedback.in_flight_bytes * 8.0 / _PACKET
        packets = max(self.target_ms / max(self._gap_ms, 0.1) - flying, 0.0)
        most = _PACKET * 1000.0 / max(self._gap_ms, 0.1)
        self.bps = _clamped(min(packets * _PACKET * self.fps, most))
        return Decision(self.bps)


@dataclass
class Copa:
    """Arun and Balakrishnan, NSDI 2018: 1 / (delta x queueing delay) packets a second, with velocity."""

    delta: float = 0.5
    _window: float = 10.0
    _velocity: float = 1.0
    _up: bool = True
    _same: int = 0
    _least: float = float("inf")
    _standing: list[tuple[float, float]] = field(default_factory=list)

    def decide(self, feedback: Feedback) -> Decision:
        now = feedback.now_ns / MS
        for ack in feedback.acks:
            rtt = float(ack["t_ack"] - ack["t_send"]) / MS
            self._least = min(self._least, rtt)
            self._standing.append((now, rtt))
        if not self._standing:
            return Decision(START_RATE_BPS)
        newest = self._standing[-1][1]
        while now - self._standing[0][0] > max(newest / 2.0, 50.0) and len(self._standing) > 1:
            self._standing.pop(0)
        rtt = min(one for _, one in self._standing)
        queueing = max(rtt - self._least, 0.05)
        target = 1000.0 / (self.delta * queueing)
        current = self._window * 1000.0 / rtt
        self._turn(current < target)
        acked = float(feedback.acks["size"].sum()) * 8.0 / _PACKET
        change = self._velocity * acked / (self.delta * self._window)
        self._window = max(self._window + (change if self._up else -change), 2.0)
        self._window = min(self._window, MAX_RATE_BPS / _PACKET * rtt / 1000.0)
        return Decision(_clamped(self._window * _PACKET * 1000.0 / rtt))

    def _turn(self, up: bool) -> None:
        """Velocity doubles after three steps in one direction, and begins again at a turn."""
        self._same = self._same + 1 if up == self._up else 0
        if up != self._up:
            self._velocity = 1.0
        elif self._same >= 3:
            self._velocity = min(2.0 * self._velocity, 8.0)
            self._same = 0
        self._up = up


@dataclass
class BbrLike:
    """The greatest delivery rate of two seconds, in cycles of 1.25, 0.75 and six times 1.

    Where delay stands it drains.
    """

    _rates: list[tuple[float, float]] = field(default_factory=list)
    _seen: Measured = field(default_factory=lambda: Measured(200.0))
    _phase: int = 2
    _turned: float = 0.0
    _starting: bool = True

    def decide(self, feedback: Feedback) -> Decision:
        interval = self._seen.add(feedback)
        now = interval.now_ms
        if interval.acked:
            self._rates.append((now, self._seen.goodput_bps))
        self._rates = [one for one in self._rates if now - one[0] <= 2000.0]
        if not self._rates:
            return Decision(START_RATE_BPS)
        bandwidth = max(rate for _, rate in self._rates)
        least = self._seen.least_rtt
        if self._starting:
            if interval.mean_rtt > 1.5 * least + 10.0 or interval.loss > 0.1:
                self._starting = False
            return Decision(_clamped(2.0 * bandwidth), _clamped(2.0 * bandwidth))
        if now - self._turned > max(least, 50.0):
            self._phase, self._turned = (self._phase + 1) % 8, now
        gain = (1.25, 0.75)[self._phase] if self._phase < 2 else 1.0
        if interval.mean_rtt > 2.0 * least + 50.0:
            gain = 0.75
        probe = gain * bandwidth if gain > 1.0 else 0.0
        return Decision(_clamped(0.9 * gain * bandwidth), probe)


class _Fbra(Enum):
    DOWN = "down"
    STAY = "stay"
    UP = "up"
    PROBE = "probe"


@dataclass
class Fbra:
    """Nagy et al., MMSys 2014: probes with repair packets (here padding), goes up where they do no harm.

    The one-way delay is compared with its 40th and 80th percentile over two seconds: 1.1, 1.6 and 2.0
    are the limits; one repair packet per `interval` media packets.
    """

    bps: float = START_RATE_BPS
    interval: int = 6
    state: _Fbra = _Fbra.STAY
    _seen: Measured = field(default_factory=lambda: Measured(2000.0))
    _since: float = 0.0

    def decide(self, feedback: Feedback) -> Decision:
        now = self._seen.add(feedback)
        delays = [one.one_way for one in self._seen.intervals if one.acked]
        if not delays or not now.acked:
            if delays and self._seen.intervals[-1].now_ms - self._since > 500.0 and not now.acked:
                self._go(_Fbra.DOWN, now, 0.85 * self.bps)
            return Decision(self.bps)
        low, high = np.percentile(delays, [40, 80])
        over_low, over_high = now.one_way / low, now.one_way / high
        self._move(now, float(over_low), float(over_high))
        self.bps = _clamped(self.bps)
        probing = self.state is _Fbra.PROBE
        return Decision(self.bps, self.bps * (1.0 + 1.0 / self.interval) if probing else 0.0)

    def _move(self, now: Interval, over_low: float, over_high: float) -> None:
        aged = now.now_ms - self._since
        if now.loss > 0.10 or over_low > 2.0:
            if self.state is not _Fbra.DOWN or aged > 200.0:
                self._go(_Fbra.DOWN, now, 0.85 * min(self._recent(), self.bps))
                self.interval = min(self.interval + 2, 14)
        elif self.state is _Fbra.DOWN:
            if aged > 200.0:
                self._go(_Fbra.STAY, now, max(0.9 * self._recent(), self.bps))
        elif over_low > 1.6:
            self._go(_Fbra.STAY, now, self.bps)
        elif self.state is _Fbra.STAY:
            if over_high < 1.1 and aged > 300.0:
                self._go(_Fbra.PROBE, now, self.bps)
        elif self.state is _Fbra.PROBE:
            if aged > 200.0:
                self._go(_Fbra.UP, now, self.bps * (1.0 + 1.0 / self.interval))
                self.interval = max(self.interval - 1, 2)
        else:
            self._go(_Fbra.STAY, now, self.bps)

    def _recent(self) -> float:
        recent = list(self._seen.intervals)[-6:]
        return sum(one.acked_bytes for one in recent) * 8.0 / (_STEP_S * len(recent))

    def _go(self, state: _Fbra, now: Interval, bps: float) -> None:
        self.state, self._since, self.bps = state, now.now_ms, bps
