"""Who is next, and who goes in: integers only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from kdn.core import Job
from kdn.schedule import (
    POLICIES,
    Fcfs,
    Priority,
    RequestQueue,
    ScheduleDecision,
    make_policy,
    replay,
)


def job(
    name: str, arrival_ns: int, num_tokens: int = 10, priority: int = 0, group: str | None = None
) -> Job:
    size = 2 if group else 1
    return Job(name, arrival_ns, num_tokens, 0, 1, priority, group, size)


class Room:
    """So many tokens of memory."""

    def __init__(self, tokens: int) -> None:
        self.left = tokens

    def fits(self, jobs: Sequence[Job]) -> bool:
        wanted = sum(j.num_tokens for j in jobs)
        if wanted > self.left:
            return False
        self.left -= wanted
        return True


def names(jobs: Sequence[Job]) -> list[str]:
    return [j.id for j in jobs]


def test_first_come_first_served_and_equal_times_by_name() -> None:
    jobs = [job("c", 2), job("b", 1), job("a", 1)]
    assert names(Fcfs().order(jobs, 0)) == ["a", "b", "c"]


def test_priority_goes_before_arrival() -> None:
    jobs = [job("early", 1, priority=5), job("late", 9, priority=-1)]
    assert names(Priority().order(jobs, 0)) == ["late", "early"]


def test_a_large_job_is_not_overtaken_by_small_ones() -> None:
    """20 tokens of room: the first takes 15, the second needs 10 and stops the third, which would fit."""
    waiting, room = RequestQueue(Fcfs()), Room(20)
    for one in (job("first", 1, 15), job("large", 2, 10), job("small", 3, 1)):
        waiting.add(one)
    assert names(waiting.admit(5, room.fits)) == ["first"]
    room.left = 20
    assert names(waiting.admit(6, room.fits)) == ["large", "small"]
    waiting.check()


def test_a_group_goes_in_together_or_not_at_all() -> None:
    waiting, room = RequestQueue(Fcfs()), Room(25)
    waiting.add(job("g1", 1, 10, group="g"))
    assert waiting.admit(2, room.fits) == [], "half a group waits"
    waiting.add(job("other", 3, 5))
    assert names(waiting.admit(4, room.fits)) == ["other"], "without holding up others"
    waiting.add(job("g2", 5, 11, group="g"))
    assert waiting.admit(6, room.fits) == [], "20 tokens are left for 21"
    room.left = 21
    assert names(waiting.admit(7, room.fits)) == ["g1", "g2"]


def test_half_a_group_takes_no_place_in_a_pack() -> None:
    """A pass holds 8 missing tokens: the 10 of half a group would fill it, and let nobody in."""
    waiting, room = RequestQueue(Fcfs()), Room(100)
    waiting.add(job("g1", 1, 10, group="g"))
    waiting.add(job("other", 2, 3))
    assert names(waiting.admit(3, room.fits, pack_tokens=8)) == ["other"]
    waiting.add(job("g2", 4, 1, group="g"))
    assert names(waiting.admit(5, room.fits, pack_tokens=8)) == ["g1", "g2"]
    waiting.check()


def test_a_removed_job_is_gone() -> None:
    waiting = RequestQueue(Fcfs())
    waiting.add(job("a", 1))
    waiting.remove("a")
    waiting.remove("a")
    assert len(waiting) == 0
    assert waiting.admit(1, Room(100).fits) == []


@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.integers(1, 30), st.integers(-2, 2)),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 60),
    st.sampled_from(sorted(POLICIES)),
)
def test_everyone_goes_in_once_and_never_beyond_the_room(
    arrivals: list[tuple[int, int, int]], tokens: int, policy: str
) -> None:
    waiting = RequestQueue(POLICIES[policy]())
    for number, (at, size, priority) in enumerate(arrivals):
        waiting.add(job(f"{number:02}", at, min(size, tokens), priority))
    seen: list[str] = []
    for now in range(len(arrivals)):
        room = Room(tokens)
        seen += names(waiting.admit(now, room.fits))
        assert room.left >= 0
        waiting.check()
    assert sorted(seen) == [f"{n:02}" for n in range(len(arrivals))]


def test_recorded_decisions_are_made_again() -> None:
    """A change of code that changes a decision must change the record, and say why."""
    recorded = json.loads((Path(__file__).parent / "decisions.json").read_text())
    for case in recorded:
        made: list[ScheduleDecision] = []
        waiting = RequestQueue(POLICIES[case["policy"]](), made.append)
        for step in case["steps"]:
            for one in step["arrive"]:
                waiting.add(Job(**one))
            waiting.admit(step["now_ns"], Room(step["room"]).fits)
        assert [[list(d.order), list(d.admitted)] for d in made] == case["decisions"]


def test_every_policy_goes_by_its_name() -> None:
    names = {"fcfs", "priority", "longest-match", "static", "shortest-miss", "calibrated", "ratio"}
    assert set(POLICIES) == names | {"families", "preflow"}
    assert all(make_policy(name).name == name for name in POLICIES)


def test_a_group_is_complete_without_those_that_will_never_come() -> None:
    waiting = RequestQueue(Fcfs())
    for name in ("a", "b"):
        waiting.add(replace(job(name, 1, group="g"), group_size=3))
    assert waiting.admit(1, bool) == []
    waiting.withdraw("c", "g", 3)
    assert [one.id for one in waiting.admit(2, bool)] == ["a", "b"]
    waiting.add(job("d", 1, group="g"))
    assert waiting.admit(3, bool) == [], "another group of that name is whole only when it is"


def test_groups_whose_others_never_come_are_forgotten() -> None:
    """All but the last 1,024, and but those that are waited for: of "first" one left, and one is here."""
    waiting = RequestQueue(Fcfs())
    waiting.add(replace(job("a", 1, group="first"), group_size=2))
    for number in ("first", *range(1, 2000)):
        waiting.withdraw("b", str(number), 2)
    late = [replace(job(f"late {n}", 2, group=str(n)), group_size=2) for n in (1, 975, 976, 1999)]
    for one in late:
        waiting.add(one)
    assert names(waiting.admit(3, bool)) == ["a", "late 1999", "late 976"]


def test_what_nobody_waits_for_goes_last_under_every_policy() -> None:
    """Two in the background came first and are shorter; and a record of it is replayed as it was."""
    for name in POLICIES:
        decided: list[ScheduleDecision] = []
        waiting, room = RequestQueue(make_policy(name), decided.append), Room(100)
        for one in (job("later", 1, 1, -5), job("last", 2, 1, -5)):
            waiting.add(replace(one, background=True))
        waiting.add(job("waited for", 3, 30))
        assert names(waiting.admit(5, room.fits))[0] == "waited for", name
        assert replay(decided, make_policy(name)) == []
