"""PREFLOW (vllm-ascend#16360): who needs least goes first, and every so long a wait doubles what it counts.

priority = 2^(age / D) / (needed * left), where W(n) = n (n + 1) / 2 pairs of attention are the work of n
tokens, less what the cached ones had.  `needed` counts what was cached when the job came, `left` what is
cached now: here a job that was let in does not come back, so nothing else is left of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from kdn.core import Job
from kdn.schedule.queue import SchedulePolicy

__all__ = ["Preflow"]

_STEPS = 64
"""Steps to a doubling: priorities are compared as whole logarithms, equal on every machine."""


class Preflow(SchedulePolicy):
    """Least squared work first, doubled for every `doubling_ns` that a job waits.

    No job that arrives more than `patience_ns` after another is ever ordered before it.
    """

    name = "preflow"

    def __init__(self, doubling_ns: int = 10**9) -> None:
        """After so long a job's priority is twice what it was; the source leaves the number to its user."""
        self._doubling_ns = doubling_ns

    def order(self, jobs: Sequence[Job], now_ns: int) -> list[Job]:
        ranks = {job.id: self._rank(job, now_ns) for job in jobs}
        return sorted(jobs, key=lambda job: (ranks[job.id], job.arrival_ns, job.id))

    def patience_ns(self, job: Job) -> int:
        """How much later another job must come to be sure of its place after this one."""
        most = _logarithm(_work(job.num_tokens, 0) ** 2)
        return -(-(most + 1) * self._doubling_ns // _STEPS)

    def _rank(self, job: Job, now_ns: int) -> int:
        """The logarithm of one over the priority, in steps."""
        needed = _work(job.num_tokens, job.num_cached_at_arrival)
        left = _work(job.num_tokens, job.num_cached)
        return _logarithm(needed * left) - _STEPS * (now_ns - job.arrival_ns) // self._doubling_ns


def _work(num_tokens: int, num_cached: int) -> int:
    """Pairs of a token and one that it attends to, for those that are not cached; at least one."""
    return max((num_tokens * (num_tokens + 1) - num_cached * (num_cached + 1)) // 2, 1)


def _logarithm(value: int) -> int:
    """To base two, in steps, rounded down."""
    power: int = value**_STEPS
    return power.bit_length() - 1
