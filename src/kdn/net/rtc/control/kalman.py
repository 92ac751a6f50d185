"""GCC as its first paper has it (Carlucci et al., MMSys 2016): a Kalman filter of the delay gradient."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from kdn.net.rtc.call import MAX_RATE_BPS, MIN_RATE_BPS, START_RATE_BPS, Decision, Feedback
from kdn.net.rtc.control.delay import InterArrival, LinkUsage
from kdn.net.rtc.control.window import Interval, Measured
from kdn.net.world.records import MS

__all__ = ["ArrivalFilter", "KalmanGcc", "PaperDetector"]

_Q, _CHI, _SPAN = 1e-3, 0.1, 5
_K_UP, _K_DOWN = 0.01, 0.00018
_OVERUSE_MS = 100.0
_GROWTH = 1.05**0.05
"""A step of 50 ms: 1.05 a second."""
_ALPHA = 0.85


@dataclass
class ArrivalFilter:
    """Section 3.1: the delay gradient in ms, from one group of packets to the next."""

    gradient: float = 0.0
    error: float = 0.1
    noise: float = 1.0
    _gaps: deque[float] = field(default_factory=lambda: deque(maxlen=_SPAN))

    def add(self, measured_ms: float, send_ms: float) -> float:
        """Take in one difference of arrival and sending gaps."""
        self._gaps.append(max(send_ms, 1.0))
        rest = measured_ms - self.gradient
        weight = (1.0 - _CHI) ** (30.0 / (1000.0 * (1.0 / min(self._gaps))))
        self.noise = max(weight * self.noise + (1.0 - weight) * rest * rest, 1.0)
        gain = (self.error + _Q) / (self.noise + self.error + _Q)
        self.gradient += gain * rest
        self.error = (1.0 - gain) * (self.error + _Q)
        return self.gradient


@dataclass
class PaperDetector:
    """Section 3.2: overuse after 100 ms above a threshold that follows the gradient."""

    threshold: float = 5.0
    _over_ms: float = 0.0

    def add(self, gradient: float, passed_ms: float) -> LinkUsage:
        """One gradient, and the time since the last."""
        size = abs(gradient)
        gain = _K_DOWN if size < self.threshold else _K_UP
        self.threshold = max(self.threshold + gain * passed_ms * (size - self.threshold), 0.5)
        if gradient > self.threshold:
            self._over_ms += passed_ms
            return LinkUsage.OVER if self._over_ms > _OVERUSE_MS else LinkUsage.NORMAL
        self._over_ms = 0.0
        return LinkUsage.UNDER if gradient < -self.threshold else LinkUsage.NORMAL


@dataclass
class KalmanGcc:
    """The controller: the smaller of a rate by delay and a rate by loss; both grow by 1.05 a second.

    By delay: at most 1.5 times what is received, and x 0.85 of it at overuse.  By loss: from the rate
    that was sent, held above 2 %, less by half the loss above 10 %.
    """

    bps: float = START_RATE_BPS
    _delay_bps: float = START_RATE_BPS
    _arrivals: InterArrival = field(default_factory=InterArrival)
    _filter: ArrivalFilter = field(default_factory=ArrivalFilter)
    _detector: PaperDetector = field(default_factory=PaperDetector)
    _seen: Measured = field(default_factory=Measured)
    _cut_ms: float = -1e9

    def decide(self, feedback: Feedback) -> Decision:
        interval = self._seen.add(feedback)
        self._by_delay(interval, self._usage(feedback))
        self.bps = max(min(self._delay_bps, self._by_loss(interval)), MIN_RATE_BPS)
        return Decision(self.bps)

    def _usage(self, feedback: Feedback) -> LinkUsage:
        """What the newest difference between two groups of packets says."""
        usage = LinkUsage.NORMAL
        for ack in feedback.acks:
            step = self._arrivals.add(float(ack["t_send"]) / MS, float(ack["t_deliver"]) / MS)
            if step is not None:
                gradient = self._filter.add(step.arrival_ms - step.send_ms, step.send_ms)
                usage = self._detector.add(gradient, step.send_ms)
        return usage

    def _by_delay(self, interval: Interval, usage: LinkUsage) -> None:
        received = self._seen.goodput_bps
        if usage is LinkUsage.OVER and interval.now_ms - self._cut_ms > 200.0:
            self._delay_bps, self._cut_ms = _ALPHA * received, interval.now_ms
        elif usage is LinkUsage.NORMAL and interval.acked:
            self._delay_bps = min(self._delay_bps * _GROWTH, 1.5 * received + 10e3)
        self._delay_bps = min(max(self._delay_bps, MIN_RATE_BPS), MAX_RATE_BPS)

    def _by_loss(self, interval: Interval) -> float:
        loss = self._seen.loss
        if loss > 0.10 and interval.now_ms - self._cut_ms > 500.0:
            self._cut_ms = interval.now_ms
            return self.bps * (1.0 - 0.5 * loss)
        return self.bps * _GROWTH if loss <= 0.02 and interval.acked else self.bps
