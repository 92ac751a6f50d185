"""Jobs that begin alike go together, nobody waits for ever, and what they share is computed once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kdn.core import JctModel, Job
from kdn.schedule import Families, PrefixCache, PrefixJob, RequestQueue, pack, simulate

SECOND = 10**9
PER_TOKEN = JctModel(pass_s=0.0, token_s=0.001, pair_s=0.0, cached_s=0.0)


def member(
    name: str, family: str, cached: int = 0, arrival_ns: int = 0, shared: int = 1000, own: int = 10
) -> Job:
    return Job(name, arrival_ns, shared + own, cached, 1, family=family, num_shared=shared)


def names(jobs: list[Job]) -> str:
    return "".join(job.id for job in jobs)


def test_the_larger_family_goes_first_when_all_are_cold() -> None:
    """Three jobs of one user take 1,030 ms together, one of another takes 1,010: three squares to one."""
    jobs = [member("a", "x"), *(member(c, "y") for c in "bcd")]
    assert names(Families(PER_TOKEN).order(jobs, SECOND)) == "bcda"


def test_what_is_stored_goes_before_what_waited_a_little_longer() -> None:
    """10 ms of work that waited one second; 1,010 ms that waited five: 3 x 1 / 10 against 25 / 1,010."""
    hit = member("h", "x", cached=1000, arrival_ns=4 * SECOND)
    cold = member("c", "y")
    assert names(Families(PER_TOKEN).order([cold, hit], 5 * SECOND)) == "hc"


def test_long_waits_count_squared() -> None:
    """Alike but for the wait: 3 s squared outweigh 2 s and 2 s squared, 9 against 8."""
    two = [member("a", "x", 1000, SECOND), member("b", "x", 1000, SECOND)]
    one = [member("c", "y", 1000, 0, own=20)]
    assert names(Families(PER_TOKEN).order([*two, *one], 3 * SECOND)) == "cab"


@given(
    st.integers(1, 2000),
    st.lists(
        st.tuples(st.integers(0, 900 * SECOND), st.integers(0, 3000), st.sampled_from("uv")),
        max_size=30,
    ),
    st.integers(0, 10**12),
)
def test_nobody_who_comes_after_a_jobs_patience_overtakes_it(
    size: int, others: list[tuple[int, int, str]], now_ns: int
) -> None:
    victim = Job("victim", 0, size, 0, 1)
    jobs = [victim] + [
        member(f"{n:02}", family, tokens, at, shared=tokens)
        for n, (at, tokens, family) in enumerate(others)
        if at <= now_ns
    ]
    policy = Families(PER_TOKEN)
    order = policy.order(jobs, now_ns)
    before = order[: order.index(victim)]
    assert all(job.arrival_ns <= policy.patience_ns(victim) for job in before)


def test_a_flood_of_hits_cannot_starve_a_cold_job() -> None:
    """Hits of 10 ms keep the machine busy for two minutes; a job of 100 ms waits 6.4 s at most."""
    flood = [PrefixJob(f"{n:05}", n * 10**7, "hot", 1024, 1034) for n in range(3000)]
    cold = PrefixJob("cold", 5 * 10**7, "cold", 0, 100)
    cache = PrefixCache(4096)
    cache.retain("hot", 1024)
    ended = simulate([*flood, cold], RequestQueue(Families(PER_TOKEN)), PER_TOKEN, cache, 1)
    started_ns = next(one.start_ns for one in ended if one.id == "cold")
    assert started_ns <= 0.05 * SECOND + Families(PER_TOKEN).patience_ns(Job("c", 0, 100, 0, 1))


def test_siblings_wait_one_pass_for_what_they_share() -> None:
    """Four cold jobs of 100 shared tokens fit a pass of 500, which would compute 400 of them."""
    burst = [member(c, "x", shared=100) for c in "abcd"]
    assert names(pack(burst, 500)) == "a"
    other = member("o", "y", shared=100)
    assert names(pack([*burst, other], 500)) == "ao", "another family need not wait"
    long_own = member("l", "x", shared=100, own=300)
    assert names(pack([burst[0], long_own], 600)) == "al", "most of this one is its own"


def test_a_sibling_waits_once_whether_or_not_the_prefix_was_kept() -> None:
    room = RequestQueue(Families(PER_TOKEN))
    for c in "abc":
        room.add(member(c, "x", shared=100))
    assert names(room.admit(0, bool, 500)) == "a"
    room.check()
    assert names(room.admit(1, bool, 500)) == "bc", "nothing was kept: together, rather than never"


def test_a_burst_of_equal_cold_prompts_computes_the_prefix_once() -> None:
    """By hand: 110 ms for the first, then three of 10 ms in one pass."""
    jobs = [PrefixJob(c, 0, "x", 100, 110) for c in "abcd"]
    ended = simulate(jobs, RequestQueue(Families(PER_TOKEN)), PER_TOKEN, PrefixCache(1000), 500)
    assert [one.end_ns // 10**6 for one in ended] == [110, 140, 140, 140]
    assert [one.num_cached for one in ended] == [0, 100, 100, 100]
