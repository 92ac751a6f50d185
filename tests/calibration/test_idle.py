"""Idle time: works in their order, one step at a time, a fault in one costs that one alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

import pytest

import kdn
from kdn.calibration.background import jct_steps
from kdn.calibration.idle import Idle, IdleSteps, IdleWork
from kdn.calibration.times import jct_path
from kdn.clock import ManualClock
from kdn.config import load_config
from kdn.core import JctModel, Prompt, Request, Role, Segment, StreamEvent
from kdn.cost import load_jct
from kdn.errors import Cancelled
from kdn.testing import write_tiny_model
from kdn.trace import NoTrace, Recorder

FOUND = JctModel(0.01, 0.001, 0.0, 0.0, 0.05, "fit")
REQUEST = Request("work", Prompt((Segment(Role.QUESTION, (1,)),)))


@dataclass
class Endless:
    """A stream that ends when it is cancelled only."""

    cancelled: threading.Event = field(default_factory=threading.Event)

    def __iter__(self) -> Iterator[StreamEvent]:
        self.cancelled.wait(60)
        yield from ()

    def cancel(self) -> None:
        self.cancelled.set()

    def on_event(self, listener: object) -> None:
        return None


@dataclass
class Engine:
    """Hands out endless streams."""

    submitted: threading.Event = field(default_factory=threading.Event)
    stream: Endless = field(default_factory=Endless)

    def submit(self, request: Request) -> Endless:
        self.submitted.set()
        return self.stream


def always() -> bool:
    return True


def noting(note: Callable[[], object], count: int) -> IdleSteps:
    for _ in range(count):
        note()
        yield 0.0


def test_earlier_works_come_first_and_one_that_has_nothing_waits_for_an_end() -> None:
    order: list[str] = []
    done = threading.Event()
    answers: list[str] = []

    def after_answers() -> IdleSteps:
        while True:
            while not answers:
                yield inf
            order.append(answers.pop())
            yield 0.0

    def last() -> None:
        order.append("last")
        if order.count("last") == 2:
            done.set()

    idle = Idle(ManualClock(), NoTrace())
    works = [IdleWork("answers", after_answers()), IdleWork("last", noting(last, 2))]
    idle.start(Engine(), always, works)
    assert done.wait(60)
    answers.append("answer")
    idle.event("engine.finish", request="r1")
    idle.finish("answers")
    assert order == ["last", "last", "answer"]
    idle.close()


def test_nothing_is_run_while_the_engine_is_busy() -> None:
    free, done = threading.Event(), threading.Event()
    looked, count = threading.Event(), [0]

    def is_idle() -> bool:
        count[0] += 1
        if count[0] == 2:
            looked.set()
        return free.is_set()

    idle = Idle(ManualClock(), NoTrace())
    idle.start(Engine(), is_idle, [IdleWork("work", noting(done.set, 1))])
    idle.event("engine.finish", request="r1")
    assert looked.wait(60)
    assert not done.is_set()
    free.set()
    idle.event("engine.finish", request="r2")
    assert done.wait(60)
    idle.close()


def test_a_fault_costs_the_work_that_has_it_and_no_other() -> None:
    trace, done = Recorder(), threading.Event()

    def broken() -> IdleSteps:
        yield 0.0
        raise ZeroDivisionError("work")

    idle = Idle(ManualClock(), trace)
    idle.start(Engine(), always, [IdleWork("bad", broken()), IdleWork("good", noting(done.set, 1))])
    assert done.wait(60)
    idle.close()
    assert [event.fields["work"] for event in trace.events("idle.failed")] == ["bad"]


def test_closing_cancels_what_runs_closes_generators_and_starts_nothing_new() -> None:
    engine, trace, closed = Engine(), Recorder(), []
    idle = Idle(ManualClock(), trace)

    def asking() -> IdleSteps:
        try:
            for _ in idle.submit(REQUEST):
                pass
            yield 0.0
            yield inf
        finally:
            closed.append(True)

    idle.start(engine, always, [IdleWork("asking", asking())])
    assert engine.submitted.wait(60)
    idle.close()
    idle.close()
    assert engine.stream.cancelled.is_set()
    assert closed == [True]
    assert trace.count("idle.failed") == 0
    with pytest.raises(Cancelled, match="closed"):
        idle.submit(REQUEST)


def test_callers_that_finish_a_work_take_turns_with_the_thread() -> None:
    """The thread is in the middle of a step when the caller comes: the caller waits for its end."""
    begun, go_on, order = threading.Event(), threading.Event(), []

    def slow() -> IdleSteps:
        begun.set()
        go_on.wait(60)
        order.append("step")
        yield 0.0

    def finish() -> None:
        idle.finish("slow")
        order.append("finished")

    idle = Idle(ManualClock(), NoTrace())
    idle.start(Engine(), always, [IdleWork("slow", slow())])
    assert begun.wait(60)
    caller = threading.Thread(target=finish)
    caller.start()
    go_on.set()
    caller.join(60)
    idle.close()
    assert order == ["step", "finished"]


# --- the time of a prompt --------------------------------------------------------------------


@dataclass
class CountingMeter:
    points: list[tuple[int, int, int]] = field(default_factory=lambda: [(1, 0, 1), (2, 0, 1)])
    measured: int = 0
    closed: bool = False

    def measure(self, point: tuple[int, int, int]) -> None:
        self.measured += 1

    def fit(self) -> JctModel:
        return FOUND

    def close(self) -> None:
        self.closed = True


def test_two_points_are_measured_four_times() -> None:
    """One round to warm up and three that count."""
    meter, kept = CountingMeter(), list[JctModel]()
    steps = jct_steps(lambda: meter, kept.append, NoTrace())
    assert list(steps) == [0] * 8
    assert (meter.measured, kept, meter.closed) == (8, [FOUND], True)


def test_closing_a_fit_keeps_nothing() -> None:
    meter, kept = CountingMeter(), list[JctModel]()
    steps = jct_steps(lambda: meter, kept.append, NoTrace())
    assert [next(steps), next(steps)] == [0, 0]
    steps.close()
    assert (meter.measured, kept, meter.closed) == (2, [], True)


def test_a_work_waits_until_no_request_has_ended_for_its_time() -> None:
    work = IdleWork("jct", noting(list[int]().clear, 1), after_s=60)
    assert [work.waits_s(quiet) for quiet in (None, 0, 20, 60, 61)] == [inf, 60, 40, 0, 0]


def test_a_work_without_anything_to_do_is_not_asked_while_its_queue_is_empty() -> None:
    queue: list[Request] = []
    work = IdleWork("prefill", noting(list[int]().clear, 1), queue)
    assert work.waits_s(None) == 0, "it was never asked"
    work.is_waiting = True
    assert work.waits_s(None) == inf
    queue.append(REQUEST)
    assert work.waits_s(None) == 0


def test_quiet_is_counted_from_the_last_end() -> None:
    clock = ManualClock()
    idle = Idle(clock, NoTrace())
    assert idle.quiet_s() is None
    clock.advance(5)
    idle.event("engine.finish", request="r1")
    clock.advance(3)
    idle.event("engine.admit", request="r2")
    assert idle.quiet_s() == 3


def test_a_service_that_answered_and_rests_has_its_fit(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", "llama", max_position_embeddings=2048)
    (tmp_path / "kdn.toml").write_text("[engine]\nfit_idle_s = 0.05\n")
    with kdn.open(model, config=load_config({}, home=tmp_path)) as service:
        path = jct_path(service.model.decoder, tmp_path)
        assert service.calibration.jct.source == "flops"
        service.generate("hello", sampling=kdn.Sampling(max_tokens=1))
        waiting = threading.Event()
        for _ in range(2000):
            if waiting.wait(0.1) or path.exists():
                break
        assert load_jct(path) is not None
    with kdn.open(model, config=load_config({}, home=tmp_path)) as service:
        assert service.calibration.jct.source == "fit"
        assert "jct" not in service.parts.idle.names


def test_it_can_be_turned_off(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", "llama")
    config = load_config({"KDN_ENGINE_FIT_IDLE_S": "0"}, home=tmp_path)
    assert config.engine.fit_idle_s == 0
    with kdn.open(model, config=config) as service:
        assert service.parts.idle.names == ("bias", "prefill", "compare", "shares")
        assert service.calibration.jct.source == "flops"
