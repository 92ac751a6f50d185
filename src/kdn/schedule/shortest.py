"""Policies that know how long a job will take, because it gives one token and its prefix is looked up.

A cost is what is left to do: microseconds by a fitted model, or the tokens that no cache holds.
PrefillOnly (arXiv 2505.07203, section 6) orders by cost less what waiting has earned, with the
cached tokens counted again before every step.
"""

from __future__ import annotations

from collections.abc import Sequence

from kdn.core import JctModel, Job
from kdn.schedule.queue import SchedulePolicy

__all__ = [
    "Calibrated",
    "Costed",
    "HighestRatio",
    "LongestMatch",
    "ShortestMiss",
    "StaticShortest",
]

_SECOND_NS = 10**9
AGEING_SHARE = 0.125
"""Seconds of work that a second of waiting outweighs. The paper's 500 tokens a second are 0.09 to 0.16 of
what its three machines prefill in a second."""
_TOKENS_PER_S = 2000
"""The prefill rate that ageing assumes until one was measured."""


class Costed(SchedulePolicy):
    """Knows a job's cost: whole microseconds if there is a model, else tokens to compute."""

    def __init__(self, model: JctModel | None = None) -> None:
        self._model = model

    def cost(self, job: Job, num_cached: int) -> int:
        """What the job still takes with so many of its tokens cached."""
        missing = job.num_tokens - num_cached
        return missing if self._model is None else self._model.microseconds(missing, num_cached)

    @property
    def unit_ns(self) -> int:
        """How long one unit of cost takes: a microsecond, or a token at the assumed rate."""
        return 1000 if self._model else _SECOND_NS // _TOKENS_PER_S

    def _order(self, jobs: Sequence[Job], key: dict[str, int]) -> list[Job]:
        return sorted(jobs, key=lambda job: (key[job.id], job.arrival_ns, job.id))


class StaticShortest(Costed):
    """Shortest first by what was known when the job came: the twin without calibration."""

    name = "static"

    def order(self, jobs: Sequence[Job], now_ns: int) -> list[Job]:
        return self._order(jobs, {j.id: self.cost(j, j.num_cached_at_arrival) for j in jobs})


class LongestMatch(SchedulePolicy):
    """The longest cached prefix first, however much is to be computed after it."""

    name = "longest-match"

    def order(self, jobs: Sequence[Job], now_ns: int) -> list[Job]:
        return sorted(jobs, key=lambda job: (-job.num_cached, job.arrival_ns, job.id))


class ShortestMiss(Costed):
    """Shortest first by what is cached now, without ageing: large jobs may starve."""

    name = "shortest-miss"

    def order(self, jobs: Sequence[Job], now_ns: int) -> list[Job]:
        return self._order(jobs, {j.id: self.cost(j, j.num_cached) for j in jobs})


class Calibrated(Costed):
    """PrefillOnly: shortest by what is cached now, less `ageing_per_s` for every second waited.

    No job that arrives more than `patience_ns` after another is ever ordered before it, whatever
    becomes of the cache: that bounds what can overtake a job by what arrives in that time.
    """

    name = "calibrated"

    def __init__(self, model: JctModel | None = None, ageing_per_s: int | None = None) -> None:
        """`ageing_per_s` is in units of cost per second; None takes AGEING_SHARE of the machine's rate."""
        super().__init__(model)
        rate = _TOKENS_PER_S if model is None else 10**6
        self._ageing_per_s = round(AGEING_SHARE * rate) if ageing_per_s is None else ageing_per_s

    def order(self, jobs: Sequence[Job], now_ns: int) -> list[Job]:
        return self._order(jobs, {job.id: self._score(job, now_ns) for job in jobs})

    def _score(self, job: Job, now_ns: int) -> int:
        cost = self.cost(job, job.num_cached)
        return cost * _SECOND_NS - self._ageing_per_s * (now_ns - job.arrival_ns)

    def patience_ns(self, job: Job) -> int:
        """How much later another job must come to be sure of its place after this one."""
        return -(-self.cost(job, 0) * _SECOND_NS // self._ageing_per_s)


class HighestRatio(Costed):
    """Highest response ratio next: (waited + cost) / cost, compared in whole millionths."""

    name = "ratio"

    def order(self, jobs: Sequence[Job], now_ns: int) -> list[Job]:
        return self._order(jobs, {job.id: -self._ratio(job, now_ns) for job in jobs})

    def _ratio(self, job: Job, now_ns: int) -> int:
        cost_ns = max(self.cost(job, job.num_cached), 1) * self.unit_ns
        return 10**6 * (now_ns - job.arrival_ns + cost_ns) // cost_ns
