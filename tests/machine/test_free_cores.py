"""Threads give way: no more compute than other programs leave processors for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdn.clock import ManualClock
from kdn.machine.threads import FreeCores, busy_seconds, running_elsewhere, usable_cores


class Machine:
    """Four processors that others and this process use for shares of the time."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.busy_s = self.own_s = 0.0
        self.running = 0
        self.cores = FreeCores(
            3,
            self.clock,
            cores=4,
            busy_s=lambda: self.busy_s,
            own_s=lambda: self.own_s,
            running=lambda: self.running,
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


@pytest.mark.parametrize(("running", "threads"), [(0, 2), (1, 1), (9, 1)])
def test_before_the_first_look_it_counts_who_runs(running: int, threads: int) -> None:
    assert FreeCores(2, ManualClock(), cores=2, running=lambda: running).threads() == threads


def test_after_a_pause_it_counts_who_runs_and_not_who_ran_meanwhile() -> None:
    machine = Machine()
    assert machine.threads(others=4.0, own=0.0, seconds=60.0) == 3
    machine.running = 2
    assert machine.threads(others=0.0, own=0.0, seconds=60.0) == 2
    assert machine.threads(others=0.0, own=2.0) == 3


def test_where_nobody_says_what_others_do_all_threads_stay() -> None:
    clock = ManualClock()
    cores = FreeCores(2, clock, cores=2, busy_s=lambda: None, running=lambda: 0)
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


def test_a_program_that_computes_is_seen_to_run() -> None:
    stat = Path("/proc/stat")
    if not (stat.is_file() and "procs_running" in stat.read_text("ascii")):
        pytest.skip("the system does not say how many threads run")
    with subprocess.Popen(
        [sys.executable, "-c", "print(1, flush=True)\nwhile True: pass"], stdout=subprocess.PIPE
    ) as busy:
        assert busy.stdout is not None
        busy.stdout.readline()
        moments = [running_elsewhere() for _ in range(20)]
        busy.kill()
    assert max(moments) >= 1
