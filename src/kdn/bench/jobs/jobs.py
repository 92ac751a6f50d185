"""The two workloads of PrefillOnly (arXiv 2505.07203, section 7.1), scaled to a small machine.

Post recommendation: users with long profiles, each with many short posts to judge.  Credit checks: one
long application a user, with nothing shared but the instruction.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kdn.core import TokenIds
from kdn.schedule import PrefixJob

__all__ = ["ARRIVALS", "Posts", "credit_jobs", "credit_lengths", "post_jobs", "with_arrivals"]

ARRIVALS = ("spread", "bursty")
"""Every request of its own Poisson process, or users of one with all their requests together."""
_FIELDS = (
    "checking account", "months", "credit history", "purpose", "amount", "savings",
    "employed since", "instalment rate", "personal status", "guarantors", "resident since",
    "property", "age", "other plans", "housing", "credits", "job", "dependants", "telephone",
    "foreign worker", "outcome",
)  # fmt: skip
_PRECEDENTS = (24, 40)
"""How many earlier cases an application is compared with."""


@dataclass(frozen=True)
class Posts:
    """The size of a post recommendation."""

    users: int = 20
    posts: int = 20
    profile_mean: float = 1400.0
    profile_spread: float = 300.0
    post_tokens: tuple[int, int] = (20, 30)


def post_jobs(size: Posts, seed: int) -> list[PrefixJob]:
    """Every post of every user, all at time 0."""
    rng = random.Random(seed)
    jobs = []
    for user in range(size.users):
        profile = max(round(rng.gauss(size.profile_mean, size.profile_spread)), 64)
        for post in range(size.posts):
            own = rng.randint(*size.post_tokens)
            jobs.append(PrefixJob(f"{user:02}-{post:02}", 0, f"u{user}", profile, profile + own))
    return jobs


def credit_jobs(lengths: Sequence[int], instruction: int) -> list[PrefixJob]:
    """One application each, after the same instruction."""
    return [
        PrefixJob(f"c{number:02}", 0, "credit", instruction, instruction + tokens)
        for number, tokens in enumerate(lengths)
    ]


def credit_lengths(
    data: Path | None, encode: Callable[[str], TokenIds], count: int, seed: int
) -> list[int]:
    """Tokens of applications written out with earlier cases beside them.

    Without the data the cases have lengths drawn at random around the same mean.
    """
    rng = random.Random(seed)
    precedents = [rng.randint(*_PRECEDENTS) for _ in range(count)]
    if data is None or not data.is_file():
        return [sum(rng.randint(80, 96) for _ in range(number + 1)) for number in precedents]
    cases = [_case(line.split()) for line in data.read_text("utf-8").splitlines() if line.strip()]
    sizes = [len(encode(case)) for case in rng.sample(cases, min(len(cases), 200))]
    return [sum(rng.choice(sizes) for _ in range(number + 1)) for number in precedents]


def _case(values: Sequence[str]) -> str:
    return "; ".join(f"{name}: {value}" for name, value in zip(_FIELDS, values, strict=True)) + "\n"


def with_arrivals(
    jobs: Sequence[PrefixJob], pattern: str, rate_per_s: float, seed: int
) -> list[PrefixJob]:
    """The jobs, arriving at `rate_per_s` on average; `pattern` is one of ARRIVALS.

    Equal seeds give equal patterns, stretched by the rate.
    """
    rng = random.Random(seed + 7919)
    groups: dict[str, list[PrefixJob]] = {}
    for job in jobs:
        groups.setdefault(job.prefix if pattern == "bursty" else job.id, []).append(job)
    coming = list(groups.values())
    rng.shuffle(coming)
    now, found = 0.0, []
    for group in coming:
        found += [replace(job, arrival_ns=round(now * 1e9)) for job in group]
        now += rng.expovariate(1.0) * len(group) / rate_per_s
    return found
