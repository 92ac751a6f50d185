"""The engine's thread: what is no Exception does not end it unheard, and a trace costs no other one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from kdn.clock import ManualClock
from kdn.core import Finish, Request
from kdn.engine import Engine, EngineLimits, RunningStream
from kdn.errors import EngineFailed
from kdn.model import LoadedModel
from kdn.model.attention import TorchAttention
from kdn.trace import Recorder, Tee
from tests.engine.runs import load_tiny
from tests.engine.test_faults import KV_BYTES, BadTrace, Computes, ask


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path], model_cache: Path) -> LoadedModel:
    return load_tiny(tiny_model("llama"), model_cache)


def ended(stream: RunningStream) -> object:
    """What a stream ended with: its Finish, or an error."""
    heard = queue.SimpleQueue[object]()
    stream.on_event(heard.put)
    last = None
    while (item := heard.get(timeout=60)) is not None:
        last = item
    return last


class Waiting(Computes):
    """A planner that waits until it may go on."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()

    def cached_tokens(self, request: Request) -> int:
        assert self.may_go_on.wait(60)
        return 0


def test_a_listener_that_calls_exit_does_not_end_the_engines_thread(tiny: LoadedModel) -> None:
    planner, heard = Waiting(), list[object]()

    def gone(item: object) -> None:
        heard.append(item)
        raise SystemExit

    engine = Engine(tiny, TorchAttention(), planner, EngineLimits(KV_BYTES), ManualClock())
    ask(engine, "gone").on_event(gone)
    planner.may_go_on.set()
    assert isinstance(ended(ask(engine, "next")), Finish)
    assert len(heard) == 1, "it is not called again"
    assert engine.is_running
    engine.close()


class Panic(BaseException):
    """What libraries in Rust raise for their own faults is no Exception."""


class Panicking(Computes):
    """A planner whose library panics at the first request."""

    def __init__(self) -> None:
        self.has_panicked = False

    def cached_tokens(self, request: Request) -> int:
        if not self.has_panicked:
            self.has_panicked = True
            raise Panic("a library's own fault")
        return 0


def test_a_panic_ends_the_requests_at_hand_and_the_next_is_answered(tiny: LoadedModel) -> None:
    engine = Engine(tiny, TorchAttention(), Panicking(), EngineLimits(KV_BYTES), ManualClock())
    assert "begins again" in str(ended(ask(engine, "panics")))
    assert isinstance(ended(ask(engine, "next")), Finish)
    engine.close()


def test_a_panic_where_steps_are_made_by_hand_is_raised_there(tiny: LoadedModel) -> None:
    """Ctrl-C, too, is meant for that thread."""
    limits = EngineLimits(KV_BYTES)
    engine = Engine(tiny, TorchAttention(), Panicking(), limits, ManualClock(), threaded=False)
    ask(engine, "panics")
    with pytest.raises(Panic):
        engine.step()
    engine.close()


def rest(engine: Engine) -> None:
    """Step until there is nothing to do."""
    while engine.step():
        pass


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_stop_in_a_listener_reaches_the_one_who_makes_the_steps(
    stop: type[BaseException], tiny: LoadedModel
) -> None:
    """It costs that request; the other has its three tokens after it, and all memory comes back."""
    limits = EngineLimits(KV_BYTES)
    engine = Engine(tiny, TorchAttention(), Computes(), limits, ManualClock(), threaded=False)
    heard, told = list[object](), list[object]()

    def interrupted(item: object) -> None:
        heard.append(item)
        raise stop

    ask(engine, "interrupted").on_event(interrupted)
    ask(engine, "other").on_event(told.append)
    with pytest.raises(stop):
        rest(engine)
    assert len(heard) == 1, "the first token"
    rest(engine)
    *tokens, finish, end = told
    assert (len(tokens), end) == (3, None)
    assert isinstance(finish, Finish)
    assert (len(heard), engine.free_kv()) == (1, KV_BYTES)
    engine.check()
    ask(engine, "open").on_event(interrupted)
    with pytest.raises(stop):
        engine.close()  # which ends that request: its listener is told


def test_four_interrupts_in_a_minute_do_not_stop_the_engine(tiny: LoadedModel) -> None:
    limits, planner = EngineLimits(KV_BYTES), Panicking()
    engine = Engine(tiny, TorchAttention(), planner, limits, ManualClock(), threaded=False)
    for name in "abcd":
        planner.has_panicked = False
        stream = ask(engine, name)
        with pytest.raises(Panic):
            engine.step()
        assert "begins again" in str(ended(stream))
    stream = ask(engine, "next")
    rest(engine)
    assert isinstance(ended(stream), Finish)
    engine.close()


class EndingClock(ManualClock):
    """A clock that ends the engine's thread while it is broken: the account of failures needs it, too."""

    is_broken = False

    def now(self) -> float:
        if self.is_broken and threading.current_thread().name == "kdn-engine":
            raise SystemExit("the clock is gone")
        return super().now()


def test_what_ends_the_engines_thread_stops_the_engine_and_is_told(tiny: LoadedModel) -> None:
    clock, stopped = EndingClock(), queue.SimpleQueue[EngineFailed]()
    engine = Engine(tiny, TorchAttention(), Computes(), EngineLimits(KV_BYTES), clock)
    engine.when_stopped(stopped.put)
    assert isinstance(ended(ask(engine, "well")), Finish)
    clock.is_broken = True
    with suppress(EngineFailed):  # a step without requests may have failed already
        assert "its thread failed" in str(ended(ask(engine, "failing")))
    assert stopped.get(timeout=60) is engine.failure
    assert not engine.is_running
    engine.close()


def test_a_trace_that_fails_costs_those_beside_it_nothing(tiny: LoadedModel) -> None:
    others = [Recorder(), Recorder()]
    trace = Tee(others[0], BadTrace(), others[1])
    limits = EngineLimits(KV_BYTES)
    engine = Engine(tiny, TorchAttention(), Computes(), limits, ManualClock(), trace=trace)
    assert isinstance(ended(ask(engine, "a")), Finish)
    engine.close()
    assert [other.count("engine.finish") for other in others] == [1, 1]
