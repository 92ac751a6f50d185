"""Google Congestion Control as WebRTC has it: the lower of a delay-based and a loss-based rate; probes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from kdn.net.rtc.call import MAX_RATE_BPS, MIN_RATE_BPS, START_RATE_BPS, Decision, Feedback
from kdn.net.rtc.control.aimd import AckedBitrate, Aimd, LossController
from kdn.net.rtc.control.delay import Detector, InterArrival, LinkUsage, Trendline
from kdn.net.world.records import MS

__all__ = ["Gcc"]

_FIRST_PROBES = (3.0, 6.0)
_NEXT_PROBE = 2.0
_REACHED = 0.7
_SILENCE_MS = 2000.0
_IDLE_PROBE_MS = 5000.0
_APP_LIMITED = 0.65
"""A sender below this share of its rate for long may probe again."""


@dataclass
class Gcc:
    """The controller of one call."""

    bps: float = START_RATE_BPS
    _arrivals: InterArrival = field(default_factory=InterArrival)
    _trend: Trendline = field(default_factory=Trendline)
    _detector: Detector = field(default_factory=Detector)
    _acked: AckedBitrate = field(default_factory=AckedBitrate)
    _rtt_ms: float = 100.0
    _heard_ms: float = 0.0
    _probes: list[float] = field(default_factory=list)
    _probing: float = 0.0
    _idle_since: float | None = None
    _started: bool = False

    def __post_init__(self) -> None:
        self._aimd = Aimd(self.bps)
        self._loss = LossController(self.bps)

    def decide(self, feedback: Feedback) -> Decision:
        """The rate from now on, and perhaps a probe."""
        now_ms = feedback.now_ns / MS
        usage = self._hear(feedback, now_ms)
        if len(feedback.acks):
            self._aimd.update(usage, self._acked.bps, self._rtt_ms, now_ms)
            self._end_probe(feedback)
            heard = len(feedback.acks) + feedback.num_lost
            by_loss = self._loss.update(heard, feedback.num_lost, self._rtt_ms, now_ms)
            if now_ms < 2000.0 and feedback.num_lost == 0:
                by_loss = max(by_loss, self._aimd.bps)
            self.bps = min(self._aimd.bps, by_loss, MAX_RATE_BPS)
            self.bps = max(self.bps, MIN_RATE_BPS)
            self._aimd.bps = min(self._aimd.bps, MAX_RATE_BPS)
            # or it grows while delay is the limit, and a loss cuts what nobody sends
            self._loss.bps = self.bps
        return Decision(self.bps, self._next_probe(feedback, now_ms))

    def _hear(self, feedback: Feedback, now_ms: float) -> LinkUsage:
        if len(feedback.acks) and now_ms - self._heard_ms > _SILENCE_MS:
            self._arrivals, self._trend = InterArrival(), Trendline()
            self._detector = Detector()
        usage = self._detector.usage
        for ack in feedback.acks:
            sent, arrived = float(ack["t_send"]) / MS, float(ack["t_deliver"]) / MS
            self._acked.add(arrived, int(ack["size"]))
            self._rtt_ms += 0.125 * (
                (float(ack["t_ack"]) - float(ack["t_send"])) / MS - self._rtt_ms
            )
            step = self._arrivals.add(sent, arrived)
            if step is not None:
                slope = self._trend.add(step)
                trend = self._trend.modified(slope)
                seen = self._detector.add(trend, slope, step.send_ms, step.at_ms)
                usage = LinkUsage.OVER if LinkUsage.OVER in {usage, seen} else seen
            self._heard_ms = now_ms
        self._detector.usage = LinkUsage.NORMAL if usage is LinkUsage.OVER else self._detector.usage
        return usage

    def _next_probe(self, feedback: Feedback, now_ms: float) -> float:
        """The rate of a probe for the next step; 0 for none."""
        if not self._started and len(feedback.acks):
            self._started = True
            self._probes = [factor * self.bps for factor in _FIRST_PROBES]
        if not self._probes and self._limited(feedback, now_ms):
            self._probes = [_NEXT_PROBE * self.bps]
        self._probing = self._probes.pop(0) if self._probes else 0.0
        return min(self._probing, MAX_RATE_BPS)

    def _limited(self, feedback: Feedback, now_ms: float) -> bool:
        """Has the sender had little to send for five seconds?"""
        if feedback.num_sent_bytes * 8.0 / 0.05 > _APP_LIMITED * self.bps:
            self._idle_since = None
            return False
        if self._idle_since is None:
            self._idle_since = now_ms
        if now_ms - self._idle_since < _IDLE_PROBE_MS:
            return False
        self._idle_since = now_ms
        return True

    def _end_probe(self, feedback: Feedback) -> None:
        """At least five packets over 15 ms tell a rate; the estimate takes it, and perhaps goes on."""
        sent = feedback.acks["t_send"] / MS
        fast = _clustered(sent, feedback.acks["size"])
        if fast is None:
            return
        first, last = fast
        size = float(feedback.acks["size"][first + 1 : last + 1].sum()) * 8000.0
        send_span = float(sent[last] - sent[first])
        arrived = feedback.acks["t_deliver"] / MS
        span = max(float(arrived[last] - arrived[first]), send_span, 1e-3)
        measured = size / span
        probed = size / max(send_span, 1e-3)
        if probed < 1.6 * self._aimd.bps or measured <= self._aimd.bps:
            return
        self._aimd.bps = 0.95 * measured if measured < 0.9 * probed else measured
        if measured < 0.9 * probed:
            self._aimd.capacity.note(measured, 0.5)
        self._loss.restart(max(self._loss.bps, self._aimd.bps))
        if measured > _REACHED * probed and not self._probes:
            self._probes = [_NEXT_PROBE * measured]


def _clustered(sent_ms: np.ndarray, sizes: np.ndarray) -> tuple[int, int] | None:
    """The first and last packet of the fastest run of five or more over 15 ms or more."""
    best, found = 0.0, None
    for first in range(len(sent_ms) - 4):
        for last in range(first + 4, len(sent_ms)):
            span = float(sent_ms[last] - sent_ms[first])
            if span < 15.0:
                continue
            rate = float(sizes[first + 1 : last + 1].sum()) / span
            if rate > best:
                best, found = rate, (first, last)
            break
    return found
