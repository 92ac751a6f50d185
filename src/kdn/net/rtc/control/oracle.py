"""The oracle: it knows what the link will carry, and sends just less. Only a simulation has one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdn.net.rtc.call import (
    MAX_RATE_BPS,
    MIN_RATE_BPS,
    PACKET_BYTES,
    STEP_MS,
    Decision,
    Feedback,
    Link,
)
from kdn.net.world.records import MS, SECOND

__all__ = ["RateOracle", "capacity_bps"]


@dataclass
class RateOracle:
    """Sends `share` of what the link carries over the next `ahead_ms`, less what stands in its queue.

    It counts on full packets: a link that lists opportunities carries less of smaller ones.
    """

    link: Link
    share: float = 0.95
    ahead_ms: float = 100.0

    def decide(self, feedback: Feedback) -> Decision:
        start = feedback.now_ns
        soon = capacity_bps(self.link, start, start + int(self.ahead_ms * MS))
        path = int(2 * self.link.delay_ms * MS)
        before = max(start - path, 0)
        carried = (
            capacity_bps(self.link, before, before + path) * path / SECOND / 8.0 if path else 0.0
        )
        standing = max(feedback.in_flight_bytes - carried, 0.0) * 8.0 * 1000.0 / (4 * STEP_MS)
        bps = self.share * soon - 0.5 * standing
        return Decision(min(max(bps, MIN_RATE_BPS), MAX_RATE_BPS))


def capacity_bps(link: Link, start_ns: int, end_ns: int) -> float:
    """The mean rate of the link between two times; an opportunity carries one full packet of a call."""
    rate = link.rate
    span = max(end_ns - start_ns, 1)
    if rate.opportunities:
        num_packets = _opportunities(rate.times_ns, rate.period_ns, start_ns, end_ns)
        return num_packets * PACKET_BYTES * 8.0 * SECOND / span
    points = np.linspace(start_ns, end_ns, 9)[:-1] + span / 16.0
    at = np.searchsorted(rate.times_ns, points % rate.period_ns, side="right") - 1
    return float(rate.bits_per_s[at].mean())


def _opportunities(times: np.ndarray, period: int, start: int, end: int) -> int:
    def until(t: int) -> int:
        return (t // period) * len(times) + int(np.searchsorted(times, t % period))

    return until(end) - until(start)
