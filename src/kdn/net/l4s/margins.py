"""What a queue's tail has been, against what is forecast: two corrections learned from ACKs.

**Too low.** A 99th percentile should be passed by one packet in a hundred.  Each queue has a
margin, added to its forecasts on the squashed scale: a packet above the raised forecast adds
`gain` times 0.99, one below takes `gain` times 0.01 off (adaptive conformal inference, Gibbs and
Candes 2021).  A margin fades with time, so that a queue shunned for its surprises is tried again.

**Too high.** A forecaster that knows many networks fears more than this one holds.  The worst of
a queue's last `RECENT` packets is passed by about one packet in a hundred as long as nothing
changes; a forecast above it is taken down to it, before the margin is added.
"""

from __future__ import annotations

import math
from collections import deque

from kdn.net.world.records import ECT1, MS, SECOND

__all__ = ["RECENT", "Margins"]

RECENT = 128
_MISSES = 0.01
_MOST = 3.0


class Margins:
    """One margin per queue, between 0 and 3 (a factor of 20 on long delays), and its recent past.

    `memory_s` is how old a queue's newest packet may be for its past to count; 0 is never.
    """

    def __init__(self, gain: float, fade_s: float, memory_s: float) -> None:
        self._gain, self._fade_s, self._memory_s = gain, fade_s, memory_s
        self._margin = [0.0, 0.0]
        self._noted = [0, 0]
        self._recent: tuple[deque[float], deque[float]] = (
            deque(maxlen=RECENT),
            deque(maxlen=RECENT),
        )
        self._sent = [0, 0]

    def raised(self, mark: int, delay_ns: float, now_ns: int) -> float:
        """The forecast (ns) for the queue of `mark`, corrected both ways."""
        queue = mark == ECT1
        recent, age = self._recent[queue], now_ns - self._sent[queue]
        if len(recent) == RECENT and age < self._memory_s * SECOND:
            delay_ns = min(delay_ns, max(recent))
        return math.sinh(math.asinh(delay_ns / MS) + self._margin[queue]) * MS

    def saw(self, mark: int, delay_ns: float, t_send_ns: int) -> None:
        """A packet sent then met `delay_ns` in that queue."""
        self._recent[mark == ECT1].append(delay_ns)
        self._sent[mark == ECT1] = t_send_ns

    def note(self, mark: int, actual_ns: float, forecast_ns: float, now_ns: int) -> None:
        """A packet of that queue met `actual_ns` where the corrected forecast was `forecast_ns`."""
        step = self._gain * ((1.0 if actual_ns > forecast_ns else 0.0) - _MISSES)
        self._margin[mark == ECT1] = min(max(self._margin[mark == ECT1] + step, 0.0), _MOST)
        for i in range(2):
            self._margin[i] *= math.exp(-(now_ns - self._noted[i]) / (self._fade_s * SECOND))
            self._noted[i] = now_ns
