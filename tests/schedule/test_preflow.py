"""PREFLOW's order by hand: squared work, doubled waiting, and a bound to being overtaken."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from kdn.core import JctModel, Job
from kdn.schedule import PrefixCache, PrefixJob, Preflow, RequestQueue, make_policy, simulate

SECOND = 10**9
PER_TOKEN = JctModel(pass_s=0.0, token_s=0.001, pair_s=0.0, cached_s=0.0)
"""A millisecond a token and nothing else."""


def job(name: str, num_tokens: int, cached: int = 0, arrival_ns: int = 0, known: int = 0) -> Job:
    return Job(name, arrival_ns, num_tokens, cached, 1, num_cached_at_arrival=known)


def names(jobs: Sequence[Job]) -> str:
    return "".join(one.id for one in jobs)


def test_work_grows_by_the_square_and_counts_what_is_not_cached() -> None:
    """W(1) = 1, W(3) = 6, W(7) = 28; of 7 tokens with 6 cached 28 - 21 = 7 pairs are left."""
    waiting = [job("l", 7), job("m", 3), job("s", 1)]
    assert names(Preflow().order(waiting, 0)) == "sml"
    # needed * left: 28 * 7 = 196 and 7 * 7 = 49 beside 6 * 6 = 36 and W(4)^2 = 100
    waiting = [job("a", 7, cached=6), job("b", 7, cached=6, known=6), job("m", 3), job("n", 4)]
    assert names(Preflow().order(waiting, 0)) == "mbna"


def test_a_wait_of_one_doubling_outweighs_twice_the_product() -> None:
    """One token (1) beside two (3 * 3 = 9, 3.17 doublings): behind after three of them, ahead after four."""
    policy = Preflow(doubling_ns=SECOND)
    for seconds, order in ((0, "so"), (3, "so"), (4, "os")):
        new = job("s", 1, arrival_ns=seconds * SECOND)
        assert names(policy.order([job("o", 2), new], seconds * SECOND)) == order


def test_equal_work_goes_as_it_came() -> None:
    jobs = [job("c", 9, arrival_ns=2), job("b", 9, arrival_ns=1), job("a", 9, arrival_ns=1)]
    assert names(Preflow().order(jobs, 5)) == "abc"


def test_in_the_simulator_the_short_one_goes_before_the_long_one_that_came_first() -> None:
    """z (100) runs until 100 ms; b (100) then ends at 200 and a (300), which came before it, at 500 ms."""
    jobs = [
        PrefixJob("z", 0, "z", 0, 100),
        PrefixJob("a", 10**7, "a", 0, 300),
        PrefixJob("b", 10**7, "b", 0, 100),
    ]
    waiting = RequestQueue(make_policy("preflow"))
    ended = simulate(jobs, waiting, PER_TOKEN, PrefixCache(0), 1)
    assert [(one.id, one.end_ns // 10**6) for one in ended] == [("z", 100), ("b", 200), ("a", 500)]


@given(
    st.integers(1, 2000),
    st.lists(st.tuples(st.integers(0, 90 * SECOND), st.integers(0, 3000)), max_size=30),
    st.integers(1, 2 * SECOND),
    st.integers(0, 10**11),
)
def test_nobody_who_comes_after_a_jobs_patience_overtakes_it(
    size: int, others: list[tuple[int, int]], doubling_ns: int, now_ns: int
) -> None:
    """At no moment, however much of the later jobs is cached and however little of this one."""
    victim, policy = job("victim", size), Preflow(doubling_ns)
    later = [
        job(f"{n:02}", tokens + 1, cached=tokens, known=tokens, arrival_ns=at)
        for n, (at, tokens) in enumerate(others)
    ]
    order = policy.order([victim, *later], now_ns)
    before = order[: order.index(victim)]
    assert all(one.arrival_ns <= policy.patience_ns(victim) for one in before)


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(0, 64 * 40))
def test_the_order_is_the_formulas_where_priorities_differ_by_two_steps(
    one: int, other: int, steps: int
) -> None:
    """Against plain rational numbers: 2^(age / D) / W^2, compared after raising both to the 64th power."""
    left, right = (one * (one + 1) // 2) ** 2, (other * (other + 1) // 2) ** 2
    waited = job("w", one, arrival_ns=0)
    fresh = job("f", other, arrival_ns=steps * 1000)
    order = names(Preflow(doubling_ns=64_000).order([waited, fresh], steps * 1000))
    if 2**steps * right**64 > 4 * left**64:  # the priority of `w` is higher by more than two steps
        assert order == "wf"
    elif 4 * 2**steps * right**64 < left**64:
        assert order == "fw"
