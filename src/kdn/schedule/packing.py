"""Which jobs, in order, share a pass: a prompt of few missing tokens costs little beside another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kdn.core import Job

__all__ = ["pack"]


def pack(
    ordered: Sequence[Job], budget_tokens: int, patient: Callable[[Job], bool] = lambda _: True
) -> list[Job]:
    """The first job, and after it, in order, those whose missing tokens fit the budget with it.

    A first job beyond the budget runs alone.  Jobs that do not fit wait for the next pass: no job's
    place changes, and no pass is longer than the first job or the budget, whichever is more.  A
    `patient` job waits as well while one of its family in the pass computes most of what it misses.
    """
    taken: list[Job] = []
    computed: dict[str, int] = {}
    left = budget_tokens
    for job in ordered:
        if taken and job.num_missing > left:
            continue
        if computed.get(job.family, 0) * 2 >= job.num_missing and patient(job):
            continue
        taken.append(job)
        if job.num_shared_missing:
            computed[job.family] = job.num_shared_missing
        left -= job.num_missing
        if left <= 0:
            break
    return taken
