"""Work behind: bounded, in order, and not stopped by a chore that fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from kdn.machine.threads import WriteBehind


def test_chores_run_in_order() -> None:
    behind, done = WriteBehind(100), list[int]()
    for number in range(5):
        assert behind.offer(10, lambda number=number: done.append(number))  # type: ignore[misc]
    assert behind.flush(60)
    assert done == [0, 1, 2, 3, 4]
    assert behind.size_bytes == 0


def test_what_waits_is_bounded_by_bytes() -> None:
    behind, gate, done = WriteBehind(100), threading.Event(), list[str]()
    assert behind.offer(60, lambda: done.append("first" if gate.wait(60) else "late"))
    assert behind.offer(40, lambda: done.append("second"))
    assert not behind.offer(1, lambda: done.append("third"))
    assert not behind.flush(0.01)
    assert behind.size_bytes == 100
    gate.set()
    assert behind.flush(60)
    assert done == ["first", "second"]
    assert behind.offer(100, lambda: done.append("fourth"))
    assert behind.flush(60)


def test_chores_that_have_not_begun_can_be_forgotten() -> None:
    behind, gate, begun, done = WriteBehind(100), threading.Event(), threading.Event(), list[str]()

    def slow() -> None:
        begun.set()
        done.append("ran" if gate.wait(60) else "late")

    behind.offer(10, slow)
    assert begun.wait(60)
    behind.offer(10, lambda: done.append("never"))
    assert behind.cancel() == 1
    gate.set()
    assert behind.flush(60)
    assert done == ["ran"]


@pytest.fixture
def last_words() -> Iterator[list[str]]:
    """What threads that died of an exception said, instead of on stderr."""
    words: list[str] = []
    before = threading.excepthook
    threading.excepthook = lambda dying: words.append(str(dying.exc_value))
    yield words
    threading.excepthook = before


def test_a_chore_that_fails_costs_itself_only(last_words: list[str]) -> None:
    behind, gate, done = WriteBehind(100), threading.Event(), list[str]()

    def fail() -> None:
        gate.wait(60)
        raise RuntimeError("a bug")

    behind.offer(10, fail)
    behind.offer(10, lambda: done.append("went on"))
    gate.set()
    assert behind.flush(60)
    assert (done, behind.size_bytes) == (["went on"], 0)
    assert _until(lambda: last_words == ["a bug"]), "the thread that dies says so when it can"


def test_a_queue_gives_way_until_it_is_half_full_or_waited_for() -> None:
    behind, busy, done = WriteBehind(100), True, list[int]()
    behind.may_work = lambda: not busy
    assert behind.offer(30, lambda: done.append(1))
    assert behind.flush(60)  # somebody waits: it goes on
    assert done == [1]

    ran = threading.Event()
    assert behind.offer(30, lambda: done.append(2))
    assert behind.offer(30, ran.set)  # 60 of 100 wait: the first is done, then 30 wait again
    assert _until(lambda: done == [1, 2])
    assert not ran.wait(0.2)
    busy = False
    assert ran.wait(60)


def test_a_queue_that_cannot_be_told_whether_to_give_way_works(
    caplog: pytest.LogCaptureFixture,
) -> None:
    behind, done = WriteBehind(100), threading.Event()

    def fail() -> bool:
        raise RuntimeError("a bug")

    behind.may_work = fail
    assert behind.offer(10, done.set)
    assert done.wait(60)
    assert behind.flush(60)
    assert "writing goes on" in caplog.text


def _until(holds: Callable[[], bool], within_s: float = 60.0) -> bool:
    waited = threading.Event()
    for _ in range(int(within_s / 0.01)):
        if holds():
            return True
        waited.wait(0.01)
    return False
