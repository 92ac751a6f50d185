"""Nothing stops the engine: every function that a step calls raises once, and the next request is answered.

The functions are found by watching steps, so that a new one is covered the day it is written.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType

import pytest

from kdn.clock import ManualClock
from kdn.core import (
    Finish,
    Job,
    Prompt,
    Request,
    RetainedKV,
    Retention,
    Role,
    Sampling,
    Segment,
    Token,
    TokenIds,
)
from kdn.engine import Engine, EngineLimits, RunningStream, plain
from kdn.errors import BadInput, EngineFailed, KdnError
from kdn.model import LoadedModel
from kdn.model.attention import TorchAttention
from kdn.reuse import PrefixReuse, Stack
from kdn.schedule import Fcfs, RequestQueue, ScheduleDecision
from kdn.store import open_store
from kdn.trace import Recorder, Value
from tests.engine.runs import load_tiny, shape_of, some_tokens

SOURCE = str(Path(__file__).parents[2] / "src" / "kdn")
KV_BYTES = 1 << 26
DOCUMENT = some_tokens(40, 200)
ASKED = [some_tokens(5 + n, 200, seed=n) for n in range(3)]


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path], model_cache: Path) -> LoadedModel:
    return load_tiny(tiny_model("llama"), model_cache)


class Injected(Exception):
    """What a function raises that was chosen to."""


class Interrupted(BaseException):
    """As Ctrl-C, which is raised wherever it comes, and no Exception."""


@dataclass
class Steps:
    """An engine with a store in memory, stepped by hand."""

    model: LoadedModel
    engine: Engine = field(init=False)
    streams: list[RunningStream] = field(default_factory=list)

    @contextmanager
    def opened(self) -> Iterator[Steps]:
        decoder = self.model.decoder
        with open_store(None, memory_bytes=1 << 24) as store:
            prefix = PrefixReuse(store, shape_of(self.model), lambda _: decoder.fingerprint)
            limits = EngineLimits(KV_BYTES, pack_tokens=256)
            self.engine = Engine(
                self.model,
                TorchAttention(),
                Stack([prefix]),
                limits,
                ManualClock(),
                trace=Recorder(),
                threaded=False,
            )
            yield self
            self.engine.close()
            prefix.close()

    def submit(self, name: str, tokens: TokenIds, **options: object) -> RunningStream:
        segments = (Segment(Role.DOCUMENT, DOCUMENT), Segment(Role.QUESTION, tokens))
        defaults: dict[str, object] = {"max_tokens": 3, "ignore_eos": True, "logprobs": 2}
        sampling = Sampling(**(defaults | options))  # type: ignore[arg-type]
        request = Request(name, Prompt(segments), sampling, retention=Retention.ALL)
        self.streams.append(self.engine.submit(request))
        return self.streams[-1]

    def some_work(self) -> list[RunningStream]:
        """Cold, then warm, then several together: greedy, drawn, with a stop string, withdrawn."""
        self.submit("first", ASKED[0])
        self.drain()
        for number, tokens in enumerate(ASKED):
            self.submit(f"s{number}", tokens)
        self.submit("drawn", ASKED[1], temperature=0.8, seed=3, min_p=0.01)
        self.submit("stops", ASKED[2], stop=("zzz",), logit_bias={7: 1.0})
        self.submit("short", ASKED[0], max_tokens=1)
        withdrawn = self.submit("withdrawn", ASKED[0], max_tokens=50)
        self.engine.step()
        self.engine.step()
        withdrawn.cancel()
        self.drain()
        return self.streams

    def drain(self) -> None:
        for _ in range(400):
            if not self.engine.step():
                return
        raise AssertionError("the engine does not come to rest")


def answer(stream: RunningStream) -> list[int] | Exception:
    """The tokens of a stream that ended, or the error that it ended with."""
    found: list[object] = []
    stream.on_event(found.append)
    assert found, "nothing was ever said"
    assert found[-1] is None, "a stream was left open"
    last = found[-2]
    if isinstance(last, Exception):
        return last
    assert isinstance(last, Finish)
    return [event.token_id for event in found if isinstance(event, Token)]


@contextmanager
def watched(see: Callable[[CodeType], None]) -> Iterator[None]:
    """Show every function of kdn that this thread enters."""

    def look(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(SOURCE):
            see(frame.f_code)

    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(None)


def stepped_functions(model: LoadedModel) -> dict[CodeType, int]:
    """Functions that steps enter, and how often."""
    counts: dict[CodeType, int] = {}
    for_step = Engine.step.__code__

    def count(code: CodeType) -> None:
        if for_step in counts or code is for_step:
            counts[code] = counts.get(code, 0) + 1

    with Steps(model).opened() as steps, watched(count):
        steps.some_work()
    return {
        code: number
        for code, number in counts.items()
        if code not in _OUTSIDE and "<" not in code.co_name
    }


_OUTSIDE = frozenset({Engine.step.__code__, Engine.submit.__code__, RunningStream.cancel.__code__})
"""Called by the test itself, in the thread of the caller."""


Answers = list[list[int] | Exception]


@pytest.fixture(scope="module")
def functions(tiny: LoadedModel) -> dict[CodeType, int]:
    return stepped_functions(tiny)


@pytest.fixture(scope="module")
def right(tiny: LoadedModel) -> Answers:
    with Steps(tiny).opened() as steps:
        return [answer(stream) for stream in steps.some_work()]


def room_of(code: CodeType) -> str:
    """The folder of kdn that the function stands in; `kdn` for the files at its root."""
    parts = Path(code.co_filename).relative_to(SOURCE).parts
    return parts[0] if len(parts) > 1 else "kdn"


ROOMS = ("core", "engine", "kdn", "machine", "model", "reuse", "schedule", "store")


def test_the_steps_enter_the_rooms_that_are_tried(functions: dict[CodeType, int]) -> None:
    assert len(functions) > 100
    assert {room_of(code) for code in functions} <= set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_an_exception_anywhere_in_a_step_costs_at_most_the_requests_at_hand(
    room: str,
    tiny: LoadedModel,
    functions: dict[CodeType, int],
    right: Answers,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A function of the engine raises at its first call and in the middle; others in the middle."""
    caplog.set_level(logging.CRITICAL)
    found = {}
    for code, number in functions.items():
        if room_of(code) == room:
            for at in {1, (number + 1) // 2} if room == "engine" else {(number + 1) // 2}:
                found[f"{code.co_qualname}, call {at}"] = after_a_fault(tiny, code, at, right)
    assert not {fault: why for fault, why in found.items() if why}


def test_an_interrupt_anywhere_in_the_engine_costs_at_most_the_requests_at_hand(
    tiny: LoadedModel, functions: dict[CodeType, int], right: Answers
) -> None:
    """In the middle of each function's calls; what was under way is not gone on with half done."""
    found = {}
    for code, number in functions.items():
        if room_of(code) == "engine":
            at = (number + 1) // 2
            found[code.co_qualname] = after_a_fault(tiny, code, at, right, raised=Interrupted)
    assert not {fault: why for fault, why in found.items() if why}


def after_a_fault(
    model: LoadedModel,
    code: CodeType,
    at: int,
    right: Answers,
    *,
    raised: type[BaseException] = Injected,
) -> str:
    """What is wrong after the function raised at that call; empty when nothing is."""
    left = [at]

    def maybe_raise(entered: CodeType) -> None:
        if entered is code:
            left[0] -= 1
            if left[0] == 0:
                raise raised(code.co_qualname)

    with Steps(model).opened() as steps:
        try:
            with watched(maybe_raise):
                steps.some_work()
        except (Injected, Interrupted):
            pass  # it was raised in a call that the test itself made, or is for who makes the steps
        steps.drain()
        if why := _wrong_answers(steps.streams, right):
            return why
        after = answer(_asked(steps))
        if after != right[0]:
            return f"the next request ended with {after!r}"
        steps.engine.check()
        return "" if steps.engine.free_kv() == KV_BYTES else "memory was not given back"


def _asked(steps: Steps) -> RunningStream:
    stream = steps.submit("after", ASKED[0])
    steps.drain()
    return stream


def _wrong_answers(streams: list[RunningStream], right: Answers) -> str:
    for stream, expected in zip(streams, right, strict=False):
        found = answer(stream)
        if isinstance(found, Exception):
            if not isinstance(found, KdnError):
                return f"a caller got {found!r}"
        elif found != expected and not stream.is_cancelled:
            return f"a wrong answer: {found}, not {expected}"
    return ""


class BrokenClock(ManualClock):
    """A clock that raises while it is broken: nothing in the loop can do without it."""

    def __init__(self) -> None:
        super().__init__()
        self.is_broken = False

    def now(self) -> float:
        if self.is_broken and threading.current_thread().name == "kdn-engine":
            raise OSError("the clock stopped")
        return super().now()


class Computes:
    """A planner without a store."""

    plan = staticmethod(plain)

    def cached_tokens(self, request: Request) -> int:
        return 0

    def retain(self, request: Request, kept: RetainedKV) -> None:
        return None


def ask(engine: Engine, name: str) -> RunningStream:
    prompt = Prompt((Segment(Role.QUESTION, ASKED[0]),))
    return engine.submit(Request(name, prompt, Sampling(max_tokens=3, ignore_eos=True)))


def test_after_four_failures_in_a_minute_the_engine_stops_and_says_so(
    tiny: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    """Each failure fails the request at hand; the fourth is the last, and a server may exit on it."""
    clock, stopped = BrokenClock(), queue.SimpleQueue[EngineFailed]()
    limits = EngineLimits(KV_BYTES)
    engine = Engine(tiny, TorchAttention(), Computes(), limits, clock)
    engine.when_stopped(stopped.put)
    assert list(ask(engine, "well"))
    clock.is_broken = True
    for number in range(4):  # a step without requests may have failed, too
        with pytest.raises(EngineFailed, match="the clock stopped"):
            list(ask(engine, f"failing{number}"))
        if not engine.is_running:
            break
    failure = stopped.get(timeout=30)
    assert "after 4 failures" in str(failure)
    assert engine.failure is failure
    assert not engine.is_running
    with pytest.raises(EngineFailed, match="restart the program"):
        ask(engine, "late")
    assert "Traceback" in caplog.text, "the log holds what was raised and where"
    engine.close()


class BrokenQueue(RequestQueue):
    """A request queue that raises while it is broken."""

    is_broken = False

    def admit(self, now_ns: int, fits: object, *others: object, **named: object) -> list[Job]:
        if self.is_broken:
            raise OSError("the queue is torn")
        return super().admit(now_ns, fits, *others, **named)  # type: ignore[arg-type]


def test_failures_that_are_far_apart_do_not_add_up(tiny: LoadedModel) -> None:
    clock, waiting = ManualClock(), BrokenQueue(Fcfs())
    engine = Engine(tiny, TorchAttention(), Computes(), EngineLimits(KV_BYTES), clock, waiting)
    for number in range(6):
        waiting.is_broken = True
        with pytest.raises(EngineFailed, match="begins again"):
            list(ask(engine, f"failing{number}"))
        waiting.is_broken = False
        clock.advance(61.0)
        assert list(ask(engine, f"well{number}"))
    assert engine.failure is None
    engine.close()


class BadTrace(Recorder):
    def event(self, name: str, **fields: Value) -> None:
        raise OSError("the disk of traces is full")


def test_a_trace_that_fails_costs_the_trace(tiny: LoadedModel) -> None:
    limits = EngineLimits(KV_BYTES)
    engine = Engine(tiny, TorchAttention(), Computes(), limits, ManualClock(), trace=BadTrace())
    assert len(list(ask(engine, "a"))) == 4
    engine.close()


class BadPolicy(Fcfs):
    def order(self, jobs: Sequence[Job], now_ns: int) -> list[Job]:
        raise ZeroDivisionError


def test_a_policy_or_a_recorder_that_fails_costs_itself(tiny: LoadedModel) -> None:
    def record(decision: ScheduleDecision) -> None:
        raise OSError("no space")

    limits = EngineLimits(KV_BYTES)
    waiting = RequestQueue(BadPolicy(), record)
    engine = Engine(tiny, TorchAttention(), Computes(), limits, ManualClock(), waiting)
    assert len(list(ask(engine, "a"))) == 4
    assert len(list(ask(engine, "b"))) == 4
    engine.close()


def test_two_requests_of_one_name_are_told_apart(tiny: LoadedModel) -> None:
    limits = EngineLimits(KV_BYTES)
    engine = Engine(tiny, TorchAttention(), Computes(), limits, ManualClock(), threaded=False)
    stream = ask(engine, "a")
    with pytest.raises(BadInput, match="'a' is running"):
        ask(engine, "a")
    while engine.step():
        pass
    assert len(list(stream)) == 4
    ask(engine, "a")
    engine.close()
