"""What the quality guard has measured of one collection of documents, and what it concludes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

from kdn.reuse.blend.record import GuardRecord

__all__ = ["CollectionMonitor", "GuardStat", "next_ratio"]

_WINDOW = 4
"""Comparisons that a judgement is made from."""
_BETTER = 0.9
"""A higher ratio must bring the mean KL below this share of the lower one's."""


@dataclass(frozen=True)
class GuardStat:
    """What the guard has seen of a collection, or of all of them."""

    samples: int
    """Blended answers that were compared."""
    agreed: int
    """Those whose first token was that of a full prefill."""
    mean_kl: float
    """Over the last few, in nats; 0 when nothing was compared."""
    ratio: float
    """The least ratio in use; 1 means that blending was stopped."""


class CollectionMonitor:
    """Counts and judges; knows no clock, no lock and no generator."""

    def __init__(self, floor: float, record: GuardRecord | None = None) -> None:
        """`floor` holds until the monitor has moved it; `record` is what an earlier run knew."""
        known = record or GuardRecord()
        if not known.agreed <= known.samples <= known.asked:  # damaged: begin again
            known = GuardRecord(ratio=known.ratio)
        self._floor = floor
        self._moved = known.ratio
        self._asked, self._samples, self._agreed = known.asked, known.samples, known.agreed
        self._recent: deque[float] = deque(known.recent_kl, maxlen=_WINDOW)
        self._tried: deque[float] = deque(maxlen=_WINDOW)
        self.trial = False
        """Is a higher ratio tried beside the one in use?"""

    @property
    def ratio(self) -> float:
        """The least ratio that these documents need."""
        return self._floor if self._moved is None else max(self._floor, self._moved)

    def asked(self, every: int) -> bool:
        """One more blended answer: is it the one in so many that is compared?"""
        self._asked += 1
        return self._asked % every == 0 and self.ratio < 1

    def saw(
        self, kl: float, *, agreed: bool, tried_kl: float | None, limit: float
    ) -> Literal["ratio", "stop"] | None:
        """One comparison at the ratio in use and, in a trial, one at the next. What changed, if any."""
        self._samples += 1
        self._agreed += agreed
        self._recent.append(kl)
        if tried_kl is not None:
            self._tried.append(tried_kl)
        if len(self._recent) < _WINDOW or _mean(self._recent) <= limit:
            self._begin(trial=False)
            return None
        self.trial = True
        if len(self._tried) < _WINDOW:
            return None
        better = _mean(self._tried) < _BETTER * _mean(self._recent)
        self._moved = next_ratio(self.ratio) if better else 1.0
        self._recent.clear()
        self._begin(trial=False)
        return "ratio" if better else "stop"

    def stat(self) -> GuardStat:
        """The counts so far."""
        return GuardStat(self._samples, self._agreed, _mean(self._recent), self.ratio)

    def record(self) -> GuardRecord:
        """What a later run should know."""
        return GuardRecord(
            asked=self._asked,
            samples=self._samples,
            agreed=self._agreed,
            recent_kl=tuple(self._recent),
            ratio=self._moved,
        )

    def check(self) -> None:
        """Check that the counts agree. Raises AssertionError."""
        assert self._agreed <= self._samples <= self._asked, "more compared than asked"

    def _begin(self, *, trial: bool) -> None:
        self.trial = trial
        self._tried.clear()


def next_ratio(ratio: float) -> float:
    """What is tried when a ratio is not enough."""
    return min(max(2 * ratio, 0.05), 1.0)


def _mean(values: deque[float]) -> float:
    return sum(values) / len(values) if values else 0.0
