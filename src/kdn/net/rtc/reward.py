"""What a learner is paid for a step: quality that knows what the codec survives, or the network alone.

`codec_aware` follows the NVC-CC reward: the quality of the newest picture, on the scale of what this picture
could have, less a tenth of the delay over the path's own; a step that shows no new picture costs one.  The
author's published code holds the delay at a constant by mistake; here it is the step's mean round trip.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kdn.net.rtc.call import Call, Feedback
from kdn.net.rtc.control.window import Interval
from kdn.net.rtc.loop import place_of
from kdn.net.rtc.rows import DECODED

__all__ = ["REWARDS", "LiveReward", "Paid", "Scales", "codec_aware", "network_only", "onrl"]

_DELAY_WEIGHT = 0.1
_MOST_DELAY = 10.0
_REMEMBERED = 500
"""Pictures whose similarities are the scale of a live call: 20 s."""


@dataclass(frozen=True)
class Scales:
    """The least and the greatest similarity of every picture in the call's table."""

    least: np.ndarray
    greatest: np.ndarray

    @staticmethod
    def of(call: Call) -> Scales:
        """Over all levels and losses."""
        ssim = call.table.ssim
        return Scales(ssim.min((1, 2)), ssim.max((1, 2)))


@dataclass(frozen=True)
class Paid:
    """What a reward is computed from."""

    feedback: Feedback
    interval: Interval
    scales: Scales
    base_rtt_ms: float
    link_bps: float
    """The trace's mean: a learner in a simulation may be told, its policy never sees it."""
    previous_bps: float


def codec_aware(paid: Paid) -> float:
    """Qn - 0.1 max(0, (T - T0) / T0)."""
    frames = paid.feedback.frames
    shown = np.nonzero(frames["fate"] == DECODED)[0]
    if not len(shown):
        return -1.0
    newest = int(shown[-1])
    first = int(paid.feedback.first_frame)
    row = place_of(first + newest, len(paid.scales.least))
    span = max(float(paid.scales.greatest[row] - paid.scales.least[row]), 1e-6)
    quality = (float(frames["quality"][newest]) - float(paid.scales.least[row])) / span
    over = max(0.0, paid.interval.mean_rtt / paid.base_rtt_ms - 1.0)
    return max(quality, -1.0) - _DELAY_WEIGHT * min(over, _MOST_DELAY)


class LiveReward:
    """`codec_aware` where no table knows the pictures: on the scale of what the call has shown of late.

    The path's own round trip is the least of the call.
    """

    def __init__(self) -> None:
        self._seen: deque[float] = deque(maxlen=_REMEMBERED)
        self._least_rtt = float("inf")

    def of(self, feedback: Feedback, interval: Interval) -> float:
        """The reward of a step; every step of the call is to be asked about, in order."""
        if interval.acked:
            self._least_rtt = min(self._least_rtt, max(interval.mean_rtt, 1.0))
        shown = feedback.frames["quality"][feedback.frames["fate"] == DECODED]
        if not len(shown):
            return -1.0
        self._seen.extend(float(one) for one in shown)
        low, high = min(self._seen), max(self._seen)
        quality = (float(shown[-1]) - low) / max(high - low, 1e-3)
        over = max(0.0, interval.mean_rtt / self._least_rtt - 1.0)
        return quality - _DELAY_WEIGHT * min(over, _MOST_DELAY)


def network_only(paid: Paid) -> float:
    """Aurora's, as net-rl scales it, over 500: throughput for the link's mean, round trip, loss."""
    throughput = paid.interval.acked_bytes * 160.0 / paid.link_bps
    rtt_s = paid.interval.mean_rtt / 1000.0 if paid.interval.acked else 1.0
    return (500.0 * throughput - 1000.0 * rtt_s - 2000.0 * paid.interval.loss) / 500.0


def onrl(paid: Paid) -> float:
    """After OnRL's: throughput, loss, delay and steadiness, over 50.

    Two things differ: `change` is from the rate that the step before *sent*, not from its throughput, and
    a millisecond of delay costs 0.1, not 10. The packaged weights were trained with this one.
    """
    mbps = paid.interval.acked_bytes * 160.0 / 1e6
    change = abs(mbps - paid.previous_bps / 1e6)
    delay = paid.interval.one_way
    return (50.0 * mbps - 50.0 * paid.interval.loss - 0.1 * delay - 30.0 * change) / 50.0


REWARDS: dict[str, Callable[[Paid], float]] = {
    "codec-aware": codec_aware,
    "network-only": network_only,
    "onrl": onrl,
}
"""A reward is a function here and its line."""
