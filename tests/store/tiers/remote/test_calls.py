"""Patience: deadlines, tries, and the breaker that spares everybody the waiting."""

from __future__ import annotations

import threading
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdn.clock import ManualClock, SystemClock
from kdn.errors import Unreachable
from kdn.store.tiers.remote.breaker import Breaker, BreakerSettings
from kdn.store.tiers.remote.calls import RemoteCaller, RemoteCallSettings


def failing() -> int:
    raise Unreachable("down")


def test_the_breaker_opens_rests_tries_and_closes() -> None:
    clock = ManualClock()
    breaker = Breaker(BreakerSettings(failures=2, open_s=4, max_open_s=10), clock, Random(1))
    assert breaker.enter()
    breaker.failed()
    assert breaker.enter(), "one failure is none"
    breaker.failed()
    assert not breaker.enter()
    clock.advance(3.9)
    assert not breaker.enter()
    clock.advance(1.2)  # the rest is stretched by a quarter at most
    assert breaker.enter()
    assert str(breaker.phase) == "trying"
    assert not breaker.enter(), "one trial at a time"
    breaker.failed()
    clock.advance(7.9)
    assert not breaker.enter(), "the rest has doubled"
    clock.advance(2.2)
    assert breaker.enter()
    breaker.succeeded()
    assert str(breaker.phase) == "closed"
    assert breaker.enter()


def test_a_trial_that_never_ends_does_not_close_the_door_for_good() -> None:
    clock = ManualClock()
    breaker = Breaker(BreakerSettings(failures=1, open_s=1), clock, Random(1))
    breaker.failed()
    clock.advance(2)
    assert breaker.enter()
    clock.advance(2)
    assert breaker.enter()


@settings(max_examples=100)
@given(st.lists(st.sampled_from(["ok", "bad", "wait"]), max_size=60))
def test_the_breaker_never_makes_an_illegal_move(steps: list[str]) -> None:
    clock = ManualClock()
    breaker = Breaker(BreakerSettings(failures=2, open_s=1, max_open_s=4), clock, Random(2))
    for step in steps:
        if step == "wait":
            clock.advance(6)
        elif breaker.enter():
            breaker.succeeded() if step == "ok" else breaker.failed()
    clock.advance(6)
    assert breaker.enter(), "no rest is longer than the longest, stretched"


def test_a_failed_call_is_made_again_and_its_end_counts() -> None:
    calls: list[int] = []

    def second_time() -> int:
        calls.append(1)
        return 7 if len(calls) == 2 else failing()

    line = RemoteCaller(
        "t", RemoteCallSettings(attempts=2, pause_s=0.001), SystemClock(), Random(1)
    )
    assert line.ask("asking", second_time) == 7
    with pytest.raises(Unreachable, match="down"):
        line.ask("asking", failing)
    assert line.is_open
    line.close()


def test_a_call_that_hangs_costs_no_more_than_the_deadline() -> None:
    """Two calls of 50 ms, then none: the circuit is open."""
    release = threading.Event()
    breaker = BreakerSettings(failures=2, open_s=1000, max_open_s=1000)
    settings = RemoteCallSettings(timeout_s=0.05, attempts=3, breaker=breaker)
    line = RemoteCaller("slow", settings, SystemClock(), Random(1))
    said: list[str] = []
    for _ in range(10):
        with pytest.raises(Unreachable) as refused:
            line.ask("asking", release.wait)
        said.append(str(refused.value))
    assert ["in time" in one for one in said] == [True] * 2 + [False] * 8
    assert all("its circuit is open" in one for one in said[2:])
    assert not line.is_open
    release.set()
    line.close()


def test_attempts_is_how_often() -> None:
    for attempts in (1, 3):
        calls: list[int] = []

        def count(calls: list[int] = calls) -> int:
            calls.append(1)
            return failing()

        line = RemoteCaller(
            "t", RemoteCallSettings(attempts=attempts, pause_s=0.0), SystemClock(), Random(1)
        )
        with pytest.raises(Unreachable):
            line.ask("asking", count)
        assert len(calls) == attempts
        line.close()


def test_a_closed_line_makes_no_calls() -> None:
    line = RemoteCaller("t", RemoteCallSettings(attempts=1), SystemClock(), Random(1))
    line.close()
    for call in (line.ask, line.start):
        with pytest.raises(Unreachable, match="asking: t is closed"):
            call("asking", failing)
