"""What many controllers measure: rates, delays and losses over the last while, from feedback."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from kdn.net.rtc.call import Feedback
from kdn.net.rtc.rows import Rows
from kdn.net.world.compiled import compiled
from kdn.net.world.records import MS

__all__ = ["Interval", "Measured", "interval_of"]


@dataclass(frozen=True)
class Interval:
    """One step of a call, as its sender knows it. Times are milliseconds."""

    now_ms: float
    acked_bytes: int
    sent_bytes: int
    acked: int
    lost: int
    mean_rtt: float
    """0 where nothing was heard."""
    inflation: float
    """Mean round trip of the later half less that of the earlier, per ms in which they were sent."""
    one_way: float
    """Mean one-way delay; clocks of a simulation agree, on real paths only its changes mean anything."""
    jitter: float
    """Mean absolute difference between successive one-way delays."""

    @property
    def loss(self) -> float:
        return self.lost / max(self.acked + self.lost, 1)


def interval_of(feedback: Feedback) -> Interval:
    """The step's numbers."""
    sizes, rtt, inflation, one_way, jitter = _summary(feedback.acks)
    return Interval(
        feedback.now_ns / MS,
        sizes,
        feedback.num_sent_bytes,
        len(feedback.acks),
        feedback.num_lost,
        rtt,
        inflation,
        one_way,
        jitter,
    )


@compiled
def _summary(acks: Rows) -> tuple[int, float, float, float, float]:
    """(bytes, mean round trip, inflation, mean one-way delay, jitter), all of time in ms."""
    num, size = len(acks), 0
    rtts, early, late, one_way, jitter = 0.0, 0.0, 0.0, 0.0, 0.0
    if num == 0:
        return 0, 0.0, 0.0, 0.0, 0.0
    half = num // 2
    before = 0.0
    for i in range(num):
        ack = acks[i]
        size += ack.size
        rtt, way = (ack.t_ack - ack.t_send) / MS, (ack.t_deliver - ack.t_send) / MS
        rtts += rtt
        one_way += way
        if i < half:
            early += rtt
        else:
            late += rtt
        if i:
            jitter += abs(way - before)
        before = way
    span = max((acks[num - 1].t_send - acks[0].t_send) / MS, 1.0)
    inflation = (late / (num - half) - early / half) / span if half else 0.0
    return size, rtts / num, inflation, one_way / num, jitter / max(num - 1, 1)


@dataclass
class Measured:
    """The intervals of the last `span_ms`."""

    span_ms: float = 500.0
    intervals: deque[Interval] = field(default_factory=deque)
    least_rtt: float = float("inf")

    def add(self, feedback: Feedback) -> Interval:
        """Take one step in, forget those that are too old."""
        found = interval_of(feedback)
        self.intervals.append(found)
        while found.now_ms - self.intervals[0].now_ms > self.span_ms:
            self.intervals.popleft()
        if found.acked:
            self.least_rtt = min(self.least_rtt, found.mean_rtt)
        return found

    @property
    def goodput_bps(self) -> float:
        """What was acknowledged in the span; 0 before the first whole interval."""
        ms = 50.0 * len(self.intervals)
        return sum(one.acked_bytes for one in self.intervals) * 8000.0 / max(ms, 50.0)

    @property
    def loss(self) -> float:
        lost = sum(one.lost for one in self.intervals)
        return lost / max(lost + sum(one.acked for one in self.intervals), 1)
