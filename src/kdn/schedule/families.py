"""Jobs that begin alike go together: what they share is computed once for all that wait.

A family's turn comes by the squares of its members' waits over the time that all of them take now:
one setup, the prefill of what they share, and each member's own part.  Dividing what waits by what it
takes is the rule of maximum weight (Tassiulas and Ephremides 1992); taking it family by family, with
the setup counted once, is ours, and so is the square, which favours few long waits over many short
ones and so keeps the tail near that of first come, first served.
"""

from __future__ import annotations

from collections.abc import Sequence

from kdn.core import Job
from kdn.schedule.shortest import Costed

__all__ = ["Families"]

STORED_FACTOR = 3
"""How much more it weighs that a family's shared part is stored now: it may be gone later."""
PATIENCE = 64
"""A job that has waited this many times its full cost goes before all that came later."""


class Families(Costed):
    """The family with the most squared waiting per time it takes, its members in order of coming.

    No job that arrives more than `patience_ns` after another is ever ordered before it.
    """

    name = "families"

    def order(self, jobs: Sequence[Job], now_ns: int) -> list[Job]:
        families: dict[str, list[Job]] = {}
        for job in jobs:
            families.setdefault(job.family or f"alone/{job.id}", []).append(job)
        ranks = {name: -self._weight(members, now_ns) for name, members in families.items()}
        return sorted(jobs, key=lambda job: self._place(job, ranks, now_ns))

    def _place(self, job: Job, ranks: dict[str, int], now_ns: int) -> tuple[int, int, int, str]:
        overdue = now_ns - job.arrival_ns > self.patience_ns(job)
        rank = 0 if overdue else ranks[job.family or f"alone/{job.id}"]
        return (not overdue, rank, job.arrival_ns, job.id)

    def patience_ns(self, job: Job) -> int:
        """How much later another job must come to be sure of its place after this one."""
        return PATIENCE * self.cost(job, 0) * self.unit_ns

    def _weight(self, members: Sequence[Job], now_ns: int) -> int:
        stored = all(job.num_shared_missing == 0 for job in members)
        waits = sum(((now_ns - job.arrival_ns) // 1000) ** 2 for job in members)
        factor = STORED_FACTOR if stored else 1
        return factor * waits // max(self._together(members), 1)

    def _together(self, members: Sequence[Job]) -> int:
        """The cost of all of them: the dearest as it is now, and what each of the others adds to it."""
        first = max(members, key=lambda job: self.cost(job, job.num_cached))
        others = (self._beside(job) for job in members if job is not first)
        return self.cost(first, first.num_cached) + sum(others)

    def _beside(self, job: Job) -> int:
        """What the job adds to a pass of its family, once what they share is there."""
        at_hand = max(job.num_shared, job.num_cached)
        missing = max(job.num_tokens - at_hand, 1)
        if self._model is None:
            return missing
        return round(1e6 * self._model.beside(missing, at_hand))
