"""How far a queue's tail forecasts have proved too low, learned from ACKs.

A 99th percentile should be passed by one packet in a hundred.  Each queue has a margin, added to
its forecasts on the squashed scale: a packet above the raised forecast adds `gain` times 0.99, one
below takes `gain` times 0.01 off (adaptive conformal inference, Gibbs and Candes 2021).  A margin
fades with time, so that a queue shunned for its surprises is tried again.
"""

from __future__ import annotations

import math

from kdn.net.world.records import ECT1, MS, SECOND

__all__ = ["Margins"]

_MISSES = 0.01
_MOST = 3.0


class Margins:
    """One margin per queue, between 0 and 3 (a factor of 20 on long delays)."""

    def __init__(self, gain: float, fade_s: float) -> None:
        self._gain, self._fade_s = gain, fade_s
        self._margin = [0.0, 0.0]
        self._noted = [0, 0]

    def raised(self, mark: int, delay_ns: float) -> float:
        """The forecast (ns) for the queue of `mark` with its margin added."""
        return math.sinh(math.asinh(delay_ns / MS) + self._margin[mark == ECT1]) * MS

    def note(self, mark: int, actual_ns: float, forecast_ns: float, now_ns: int) -> None:
        """A packet of that queue met `actual_ns` where the raised forecast was `forecast_ns`."""
        step = self._gain * ((1.0 if actual_ns > forecast_ns else 0.0) - _MISSES)
        self._margin[mark == ECT1] = min(max(self._margin[mark == ECT1] + step, 0.0), _MOST)
        for i in range(2):
            self._margin[i] *= math.exp(-(now_ns - self._noted[i]) / (self._fade_s * SECOND))
            self._noted[i] = now_ns
