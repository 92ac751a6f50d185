"""Order by what is left to do: the paper's example, ageing, packing, and decisions made again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdn.core import JctModel, Job
from kdn.schedule import (
    POLICIES,
    Calibrated,
    HighestRatio,
    LongestMatch,
    PrefixCache,
    PrefixJob,
    RequestQueue,
    ScheduleDecision,
    SchedulePolicy,
    ShortestMiss,
    StaticShortest,
    make_policy,
    pack,
    replay,
    simulate,
)

SECOND = 10**9
PER_TOKEN = JctModel(pass_s=0.0, token_s=0.001, pair_s=0.0, cached_s=0.0)
"""A millisecond a token and nothing else: times can be added up by hand."""


def job(name: str, num_tokens: int, cached: int = 0, arrival_ns: int = 0, known: int = 0) -> Job:
    return Job(name, arrival_ns, num_tokens, cached, 1, num_cached_at_arrival=known)


def names(jobs: Sequence[Job]) -> str:
    return "".join(j.id for j in jobs)


def run(
    jobs: Sequence[PrefixJob], policy: SchedulePolicy, cache_tokens: int, pack_tokens: int = 1
) -> str:
    cache = PrefixCache(cache_tokens)
    return names_of(simulate(jobs, RequestQueue(policy), PER_TOKEN, cache, pack_tokens))


def names_of(ended: Sequence[object]) -> str:
    return "".join(one.id for one in ended)  # type: ignore[attr-defined]


PAPER = [
    PrefixJob("A", 0, "AD", 1024, 1100),
    PrefixJob("B", 0, "BC", 1024, 1300),
    PrefixJob("C", 0, "BC", 1024, 1200),
    PrefixJob("D", 0, "AD", 1024, 1400),
]
"""Lengths A < C < B < D; A and D share a prefix, and B and C; the cache holds one prefix."""


@pytest.mark.parametrize(
    ("policy", "order", "hits"),
    [(StaticShortest(), "ACBD", 1), (Calibrated(), "ADCB", 2), (ShortestMiss(), "ADCB", 2)],
)
def test_the_papers_four_jobs(policy: SchedulePolicy, order: str, hits: int) -> None:
    """Ordered once, the cache has lost A's prefix when D comes; counted again, D follows A."""
    ended = simulate(PAPER, RequestQueue(policy), PER_TOKEN, PrefixCache(1024), 1)
    assert names_of(ended) == order
    assert sum(one.num_cached == 1024 for one in ended) == hits


def test_first_come_first_served_hits_when_neighbours_share() -> None:
    ended = simulate(PAPER, RequestQueue(make_policy("fcfs")), PER_TOKEN, PrefixCache(1024), 1)
    assert names_of(ended) == "ABCD"
    assert [one.num_cached for one in ended] == [0, 0, 1024, 0]
    assert [one.end_ns // 10**6 for one in ended] == [1100, 2400, 2576, 3976]


def test_waiting_outweighs_work() -> None:
    """100 tokens a second: after 9 s a job of 1,000 tokens is as good as one of 100."""
    policy = Calibrated(ageing_per_s=100)
    old, new = job("o", 1000), job("n", 100, arrival_ns=9 * SECOND)
    assert names(policy.order([old, new], 9 * SECOND)) == "on", "equal scores go by arrival"
    assert names(policy.order([old, job("n", 99, arrival_ns=9 * SECOND)], 9 * SECOND)) == "no"
    assert policy.patience_ns(old) == 10 * SECOND


def test_a_model_scales_ageing_to_the_machine() -> None:
    """A token takes a millisecond, so that a second of waiting outweighs 125 tokens on this machine."""
    policy = Calibrated(PER_TOKEN)
    assert policy.cost(job("a", 500, cached=100), 100) == 400_000
    assert policy.patience_ns(job("a", 125)) == SECOND


def test_longest_match_and_ratio() -> None:
    jobs = [job("a", 1000, cached=900), job("b", 50), job("c", 5000, cached=901)]
    assert names(LongestMatch().order(jobs, 0)) == "cab"
    waited = [job("s", 100, arrival_ns=9 * SECOND), job("l", 1000)]
    # 100 ms of work for 1 s of waiting are 11; 1 s of work for 10 s of waiting are 11 too
    assert names(HighestRatio(PER_TOKEN).order(waited, 10 * SECOND)) == "ls"
    assert names(HighestRatio(PER_TOKEN).order(waited, 11 * SECOND)) == "sl"


def test_short_hits_share_a_pass() -> None:
    hits = [job(c, 1030, cached=1000) for c in "abcd"]
    assert names(pack(hits, 100)) == "abc", "30 + 30 + 30 of 100"
    assert names(pack([job("x", 500), *hits], 100)) == "x", "a long one runs alone"
    assert names(pack([hits[0], job("y", 80), hits[1]], 100)) == "ab", "what does not fit waits"
    assert pack([], 100) == []


@st.composite
def _crowds(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    victim = draw(st.integers(1, 2000))
    others = draw(
        st.lists(st.tuples(st.integers(0, 60 * SECOND), st.integers(0, 3000)), max_size=30)
    )
    return victim, others


@given(_crowds(), st.integers(1, 500), st.integers(0, 10**11))
def test_nobody_who_comes_after_a_jobs_patience_overtakes_it(
    crowd: tuple[int, list[tuple[int, int]]], ageing: int, now_ns: int
) -> None:
    """At no moment, however much of the later jobs is cached and however little of this one."""
    size, others = crowd
    victim = job("victim", size)
    jobs = [victim] + [
        job(f"{n:02}", tokens + 1, cached=tokens, arrival_ns=at)
        for n, (at, tokens) in enumerate(others)
    ]
    policy = Calibrated(ageing_per_s=ageing)
    order = policy.order(jobs, now_ns)
    before = order[: order.index(victim)]
    assert all(j.arrival_ns <= policy.patience_ns(victim) for j in before)


def test_a_flood_of_hits_starves_a_cold_job_only_without_ageing() -> None:
    """Hits of 10 ms come every 10 ms for a minute and would keep the machine busy for ever.

    The cold job of a second may be overtaken by those who come in its patience of 8 s, and by the
    one under way: it must start by then.
    """
    flood = [PrefixJob(f"{n:04}", n * 10**7, "hot", 1024, 1034) for n in range(6000)]
    cold = PrefixJob("cold", 5 * 10**7, "cold", 0, 1000)

    def started_s(policy: SchedulePolicy) -> float:
        cache = PrefixCache(4096)
        cache.retain("hot", 1024)
        ended = simulate([*flood, cold], RequestQueue(policy), PER_TOKEN, cache, 1)
        return next(one.start_ns for one in ended if one.id == "cold") / SECOND

    assert started_s(ShortestMiss(PER_TOKEN)) > 59, "the twin waits until the flood is over"
    patient = Calibrated(PER_TOKEN)
    assert patient.patience_ns(job("cold", 1000)) == 8 * SECOND
    assert started_s(patient) <= 0.05 + 8.0 + 0.02


def test_recorded_decisions_are_replayed() -> None:
    made: list[ScheduleDecision] = []
    room = RequestQueue(Calibrated(), made.append)
    simulate(PAPER, room, PER_TOKEN, PrefixCache(1024), 1)
    assert [d.admitted for d in made] == [("A",), ("D",), ("C",), ("B",)]
    assert replay(made, Calibrated()) == []
    differing = replay(made, make_policy("fcfs"))
    assert ["".join(d.order) for d in differing] == ["ABCD", "BCD", "BC"]


@given(
    st.lists(
        st.tuples(st.integers(0, SECOND), st.sampled_from("uvw"), st.integers(1, 900)),
        min_size=1,
        max_size=20,
    ),
    st.sampled_from(sorted(POLICIES)),
    st.integers(1, 3000),
    st.integers(1, 800),
)
def test_every_job_ends_once_and_no_two_passes_overlap(
    arrivals: list[tuple[int, str, int]], policy: str, cache_tokens: int, pack_tokens: int
) -> None:
    jobs = [
        PrefixJob(f"{n:02}", at, user, 600, 600 + own) for n, (at, user, own) in enumerate(arrivals)
    ]
    room = RequestQueue(make_policy(policy, PER_TOKEN))
    ended = simulate(jobs, room, PER_TOKEN, PrefixCache(cache_tokens), pack_tokens)
    assert sorted(one.id for one in ended) == [j.id for j in jobs]
    passes = sorted({(one.start_ns, one.end_ns) for one in ended})
    assert all(a[1] <= b[0] for a, b in pairwise(passes))
    assert all(one.start_ns >= one.arrival_ns for one in ended)
