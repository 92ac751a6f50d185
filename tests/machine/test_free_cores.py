"""Threads give way: no more compute than other programs leave processors for."""

from __future__ import annotations

import os
import time

import pytest

from kdn.clock import ManualClock
from kdn.machine.threads import FreeCores, busy_seconds, usable_cores


class Machine:
    """Four processors that others and this process use for shares of the time."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.busy_s = self.own_s = 0.0
        self.cores = FreeCores(
            3,
            self.clock,
            cores=4,
            busy_s=lambda: self.busy_s,
            own_s=lambda: self.own_s,
            load=lambda: 0.0,
        )

    def threads(self, others: float, own: float, seconds: float = 0.25) -> int:
        self.clock.advance(seconds)
        self.own_s += own * seconds
        self.busy_s += (others + own) * seconds
        return self.cores.threads()


@pytest.mark.parametrize(
    ("others", "threads"), [(0.0, 3), (1.0, 3), (1.4, 3), (1.6, 2), (2.6, 1), (4.0, 1)]
)
def test_others_are_left_what_they_use(others: float, threads: int) -> None:
    assert Machine().threads(others, own=3.0) == threads


def test_threads_come_back_when_others_are_done_and_a_short_look_changes_nothing() -> None:
    machine = Machine()
    assert machine.threads(3.5, own=0.5) == 1
    assert machine.threads(0.0, own=1.0, seconds=0.1) == 1
    assert machine.threads(0.0, own=1.0, seconds=0.2) == 3


@pytest.mark.parametrize(("load", "threads"), [(0.4, 2), (1.2, 1), (9.0, 1)])
def test_before_the_first_look_the_last_minute_counts(load: float, threads: int) -> None:
    assert FreeCores(2, ManualClock(), cores=2, load=lambda: load).threads() == threads


def test_where_nobody_says_what_others_do_all_threads_stay() -> None:
    clock = ManualClock()
    cores = FreeCores(2, clock, cores=2, busy_s=lambda: None, load=lambda: 0.0)
    clock.advance(10.0)
    assert cores.threads() == 2


def test_the_machine_has_been_busy_and_has_processors() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    before = busy_seconds()
    if before is None:
        pytest.skip("the system does not say what its processors did")
    end_s = time.process_time() + 0.1
    while time.process_time() < end_s:
        pass
    after = busy_seconds()
    assert after is not None
    assert after - before >= 0.05
