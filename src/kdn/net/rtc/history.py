"""What a policy sees of a call, and what its action does to the rate."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from kdn.net.rtc.call import MAX_RATE_BPS, MIN_RATE_BPS, START_RATE_BPS
from kdn.net.rtc.control.window import Interval

__all__ = ["HISTORY", "History", "apply_action"]

HISTORY = 10
_STEP_GAIN = 0.5
"""An action of 1 grows the rate by half."""


class History:
    """The state of a policy: three numbers for each of the last ten steps, and the rate."""

    def __init__(self) -> None:
        self._rows: deque[tuple[float, float, float]] = deque(
            [(0.0, 1.0, 1.0)] * HISTORY, maxlen=HISTORY
        )
        self.least_rtt = float("inf")

    def add(self, interval: Interval) -> None:
        """Take one step in."""
        if interval.acked:
            self.least_rtt = min(self.least_rtt, interval.mean_rtt)
            ratio = interval.mean_rtt / max(self.least_rtt, 1.0)
        else:
            ratio = 10.0
        sent = interval.sent_bytes
        received = interval.acked_bytes / sent if sent else 1.0
        self._rows.append((interval.inflation, ratio, received))

    def observation(self, rate_bps: float) -> NDArray[np.float32]:
        """31 numbers within [-10, 10]."""
        rows = np.array(self._rows, np.float32)
        rows[:, 1] -= 1.0
        rate = np.log(rate_bps / START_RATE_BPS)
        flat = np.append(rows.reshape(-1), rate).clip(-10.0, 10.0)
        return np.asarray(flat, np.float32)


def apply_action(rate_bps: float, action: float) -> float:
    """The rate after an action, within a call's bounds."""
    change = _STEP_GAIN * min(max(action, -2.0), 2.0)
    rate = rate_bps * (1.0 + change) if change >= 0 else rate_bps / (1.0 - change)
    return min(max(rate, MIN_RATE_BPS), MAX_RATE_BPS)
