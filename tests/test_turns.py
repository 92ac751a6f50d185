"""Tests that run side by side, and the one that is alone."""

from __future__ import annotations

import fcntl
import threading
from pathlib import Path

from tests.turns import Turns


class Worker(threading.Thread):
    """Comes in, stays until it may leave, and leaves."""

    def __init__(self, folder: Path, *, alone: bool = False) -> None:
        super().__init__(daemon=True)
        self._turns, self._alone = Turns(folder), alone
        self.is_in, self.may_leave = threading.Event(), threading.Event()
        self.start()

    def run(self) -> None:
        with self._turns.turn(alone=self._alone):
            self.is_in.set()
            assert self.may_leave.wait(60)

    def leave(self) -> None:
        self.may_leave.set()
        self.join(60)
        assert not self.is_alive()


def until_the_gate_is_held(folder: Path) -> None:
    """Wait until somebody holds the gate, as one does that waits to be alone."""
    pulse = threading.Event()
    with (folder / "gate").open("a") as gate:
        while not pulse.wait(0.001):
            try:
                fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            fcntl.flock(gate, fcntl.LOCK_UN)


def test_two_tests_run_side_by_side(tmp_path: Path) -> None:
    first, second = Worker(tmp_path), Worker(tmp_path)
    assert first.is_in.wait(60)
    assert second.is_in.wait(60)
    first.leave()
    second.leave()


def test_a_test_that_is_alone_waits_for_the_others_and_they_for_it(tmp_path: Path) -> None:
    first = Worker(tmp_path)
    assert first.is_in.wait(60)
    single = Worker(tmp_path, alone=True)
    until_the_gate_is_held(tmp_path)
    assert not single.is_in.wait(0.2)
    first.leave()
    assert single.is_in.wait(60)
    later = Worker(tmp_path)
    assert not later.is_in.wait(0.2)
    single.leave()
    assert later.is_in.wait(60)
    later.leave()


def test_a_test_that_is_alone_comes_before_those_that_ask_later(tmp_path: Path) -> None:
    """Without the gate, workers that take turns would keep it out for ever."""
    first = Worker(tmp_path)
    assert first.is_in.wait(60)
    single = Worker(tmp_path, alone=True)
    until_the_gate_is_held(tmp_path)
    assert not single.is_in.wait(0.2)
    later = Worker(tmp_path)
    assert not later.is_in.wait(0.2)
    first.leave()
    assert single.is_in.wait(60)
    assert not later.is_in.is_set()
    single.leave()
    assert later.is_in.wait(60)
    later.leave()
