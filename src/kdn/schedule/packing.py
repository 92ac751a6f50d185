"""Which of those in order share a pass: a prompt of few missing tokens costs little beside another."""

from __future__ import annotations

from collections.abc import Sequence

from kdn.core import Job

__all__ = ["pack"]


def pack(ordered: Sequence[Job], budget_tokens: int) -> list[Job]:
    """The first job, and behind it, in order, those whose missing tokens fit the budget with it.

    A first job beyond the budget runs alone.  Jobs that do not fit wait for the next pass: nobody's
    place changes, and no pass is longer than the first job or the budget, whichever is more.
    """
    taken: list[Job] = []
    left = budget_tokens
    for job in ordered:
        if taken and job.num_missing > left:
            continue
        taken.append(job)
        left -= job.num_missing
        if left <= 0:
            break
    return taken
