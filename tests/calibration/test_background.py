"""What is left for idle time: done once, only after its request, and never after closing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from kdn.calibration.background import BackgroundWork
from kdn.core import Blend, Finish, FinishReason, Prompt, Request, Role, Segment, StreamEvent, Usage
from kdn.errors import EngineFailed
from kdn.reuse.blend import QualityGuard, RatioController
from kdn.trace import NoTrace, Recorder

ASKED = Request("asked", Prompt((Segment(Role.QUESTION, (1,)),)), techniques=(Blend(0.1),))


class Done:
    """A stream that is over at once."""

    def __iter__(self) -> Iterator[StreamEvent]:
        return iter([Finish(FinishReason.LENGTH, Usage(1, 1))])

    def cancel(self) -> None:
        return None

    def on_event(self, listener: object) -> None:
        return None


@dataclass
class Noting:
    """A generator that only notes what it was asked, and tells when it was."""

    ids: list[str] = field(default_factory=list)
    came: threading.Event = field(default_factory=threading.Event)
    broken: bool = False

    def submit(self, request: Request) -> Done:
        if self.broken:
            raise EngineFailed("closed")
        self.ids.append(request.id)
        self.came.set()
        return Done()


def lessons(request: Request) -> list[Request]:
    return [replace(request, id=f"{request.id}, {part}") for part in ("one", "two")]


def quiet() -> QualityGuard:
    return QualityGuard(RatioController(0.15), 0, 1.0, NoTrace())


def test_lessons_come_after_the_answer_and_once() -> None:
    after, generator = BackgroundWork(lessons, quiet()), Noting()
    after.note(ASKED)
    after.note(ASKED)  # planned again, for want of room
    after.event("engine.finish", request="another")
    after.event("engine.finish", request="asked")
    assert after.work(generator) == 1
    assert after.work(generator) == 0
    assert generator.ids == ["asked, one", "asked, two"]
    after.check()


def test_a_failed_request_leaves_nothing_to_do() -> None:
    after, generator = BackgroundWork(lessons, quiet()), Noting()
    after.note(ASKED)
    after.event("engine.fail", request="asked")
    assert after.work(generator) == 0


def test_a_generator_that_refuses_is_an_event_not_an_error() -> None:
    trace = Recorder()
    after = BackgroundWork(lessons, quiet(), trace)
    after.note(ASKED)
    after.event("engine.finish", request="asked")
    assert after.work(Noting(broken=True)) == 1
    assert trace.count("background.failed") == 1


def test_the_thread_works_when_the_engine_is_idle_and_ends_when_closed() -> None:
    idle, generator = threading.Event(), Noting()
    after = BackgroundWork(lessons, quiet())
    after.start(generator, idle.is_set)
    after.note(ASKED)
    after.event("engine.finish", request="asked")
    assert not generator.ids, "others are still being served"
    idle.set()
    after.event("engine.finish", request="the last of them")
    assert generator.came.wait(10)
    after.close()
    after.close()
    assert generator.ids == ["asked, one", "asked, two"]


def test_who_catches_up_does_not_overtake_the_thread() -> None:
    """All that was left is done when `work` returns, whoever did it."""
    begun, caught_up, overtaken, generator = threading.Event(), threading.Event(), [], Noting()

    def slow(request: Request) -> list[Request]:
        begun.set()
        overtaken.append(caught_up.wait(0.2))
        return lessons(request)

    after = BackgroundWork(slow, quiet())
    after.start(generator, lambda: True)
    after.note(ASKED)
    after.event("engine.finish", request="asked")
    assert begun.wait(10)
    assert after.work(generator) == 0
    caught_up.set()
    assert overtaken == [False]
    assert generator.ids == ["asked, one", "asked, two"]
    after.close()
