"""What blended answers leave to do: done once, only after its request, each kind by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import inf

from kdn.calibration.background import bias_steps, comparison_steps, prefill_steps
from kdn.calibration.idle import EndedRequests
from kdn.core import (
    Blend,
    Finish,
    FinishReason,
    Prompt,
    Request,
    Role,
    Segment,
    StreamEvent,
    Token,
    TokenProb,
    Usage,
)
from kdn.errors import EngineFailed
from kdn.reuse.blend import QualityGuard, RatioController
from kdn.trace import NoTrace, Recorder

ASKED = Request("asked", Prompt((Segment(Role.QUESTION, (1,)),)), techniques=(Blend(),))


class Done:
    """A stream of one token, sure of itself."""

    def __iter__(self) -> Iterator[StreamEvent]:
        yield Token(1, "a", 0.0, (TokenProb(1, "a", 0.0),))
        yield Finish(FinishReason.LENGTH, Usage(1, 1))

    def cancel(self) -> None:
        return None

    def on_event(self, listener: object) -> None:
        return None


@dataclass
class Noting:
    """A generator that notes what it was asked."""

    requests: list[Request] = field(default_factory=list)
    broken: bool = False

    def submit(self, request: Request) -> Done:
        if self.broken:
            raise EngineFailed("closed")
        self.requests.append(request)
        return Done()


def wished(request: Request) -> list[Request]:
    return [replace(request, id=f"{request.id}, {part}") for part in ("one", "two")]


def test_prefills_come_after_the_answer_and_once() -> None:
    ended, generator = EndedRequests(), Noting()
    steps = prefill_steps(ended.queue(), wished, generator, NoTrace())
    ended.note(ASKED)
    ended.note(ASKED)  # planned again, for want of room
    ended.event("engine.finish", request="another")
    assert next(steps) == inf
    ended.event("engine.finish", request="asked")
    assert [next(steps) for _ in range(4)] == [0, 0, 0, inf]
    assert [request.id for request in generator.requests] == ["asked, one", "asked, two"]
    ended.check()


def test_a_failed_request_leaves_nothing_to_do() -> None:
    ended = EndedRequests()
    queue = ended.queue()
    ended.note(ASKED)
    ended.event("engine.fail", request="asked")
    ended.wait()
    assert not queue


def test_every_reader_has_a_queue_of_its_own() -> None:
    ended = EndedRequests()
    one, two = ended.queue(), ended.queue()
    ended.note(ASKED)
    ended.event("engine.finish", request="asked")
    assert one.popleft() is ASKED
    assert list(two) == [ASKED]


def test_the_oldest_of_very_many_are_forgotten() -> None:
    ended = EndedRequests()
    queue = ended.queue()
    for number in range(70):
        ended.note(replace(ASKED, id=str(number)))
        ended.event("engine.finish", request=str(number))
    assert [queue[0].id, queue[-1].id, len(queue)] == ["6", "69", 64]


def test_a_generator_that_refuses_costs_one_request() -> None:
    ended, trace, generator = EndedRequests(), Recorder(), Noting(broken=True)
    steps = prefill_steps(ended.queue(), wished, generator, trace)
    for name in ("first", "second"):
        ended.note(replace(ASKED, id=name))
        ended.event("engine.finish", request=name)
    assert next(steps) == 0
    generator.broken = False
    assert [next(steps) for _ in range(4)] == [0, 0, 0, inf]
    assert [request.id for request in generator.requests] == ["second, one", "second, two"]
    assert [event.fields["request"] for event in trace.events("background.failed")] == ["first"]


def test_one_in_two_answers_is_compared_in_full_and_blended() -> None:
    ended, generator, trace = EndedRequests(), Noting(), Recorder()
    guard = QualityGuard(RatioController(0.15), 2, 1.0, trace)
    steps = comparison_steps(ended.queue(), guard, generator, trace)
    for name in ("first", "second"):
        ended.note(replace(ASKED, id=name))
        ended.event("engine.finish", request=name)
    assert [next(steps) for _ in range(3)] == [0, 0, inf]
    assert [request.option(Blend) is not None for request in generator.requests] == [False, True]
    assert guard.stats()[""].samples == 1


def test_the_bias_is_measured_once_a_blended_answer_has_ended() -> None:
    ended = EndedRequests()
    steps = bias_steps(ended.queue(), lambda: iter([None, None, None]))
    assert next(steps) == inf
    ended.note(ASKED)
    ended.event("engine.finish", request="asked")
    assert list(steps) == [0, 0, 0]
