"""What blended answers leave to do: learn the model's key bias, prefill documents, compare answers.

planned ─> noted ─> its request ends ─> in every queue ─> a step of idle time each
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from math import inf

from kdn.calibration.idle import IdleSteps
from kdn.core import Generator, Request
from kdn.errors import KdnError
from kdn.reuse.blend.guard import QualityGuard
from kdn.trace import Trace, Value

__all__ = ["EndedRequests", "bias_steps", "comparison_steps", "prefill_steps"]

_ENDINGS = ("engine.finish", "engine.fail")
_MOST_READY = 64
"""More blended answers than this are forgotten, oldest first: they come up again."""


class EndedRequests:
    """Requests that techniques had a say in, from their planning to their end, for several readers."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._noted: dict[str, Request] = {}
        self._queues: list[deque[Request]] = []
        self._closing = False

    def queue(self) -> deque[Request]:
        """Requests that have ended well from now on, oldest first; the reader takes them out."""
        queue = deque[Request](maxlen=_MOST_READY)
        self._queues.append(queue)
        return queue

    def note(self, request: Request) -> None:
        """A request was planned, perhaps once more."""
        with self._changed:
            self._noted[request.id] = request

    def event(self, name: str, **fields: Value) -> None:
        """As a trace: the end of a noted request."""
        if name not in _ENDINGS:
            return
        with self._changed:
            request = self._noted.pop(str(fields.get("request")), None)
            if request is not None and name == "engine.finish":
                for queue in self._queues:
                    queue.append(request)
            self._changed.notify_all()

    def wait(self) -> None:
        """Until no request is noted that has not ended, or this is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or not self._noted)

    def close(self) -> None:
        """Let go of callers that wait. Calling it twice is harmless."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def check(self) -> None:
        """Audit the books. Raises AssertionError."""
        with self._changed:
            for queue in self._queues:
                assert not {r.id for r in queue} & set(self._noted), "ready before its end"


def bias_steps(ended: deque[Request], measure: Callable[[], Iterator[None]]) -> IdleSteps:
    """Once a blended answer has ended: what blending wants to know of the model, step by step."""
    while not ended:
        yield inf
    for _ in measure():
        yield 0.0


def prefill_steps(
    ended: deque[Request],
    wished: Callable[[Request], list[Request]],
    generator: Generator,
    trace: Trace,
) -> IdleSteps:
    """For each ended request, run those that `wished` names: they store what it lacked."""
    while True:
        while not ended:
            yield inf
        request = ended.popleft()
        try:
            for one in wished(request):
                for _ in generator.submit(one):
                    pass
                yield 0.0
        except KdnError as error:
            trace.event("background.failed", request=request.id, why=str(error))
        yield 0.0


def comparison_steps(
    ended: deque[Request], guard: QualityGuard, generator: Generator, trace: Trace
) -> IdleSteps:
    """Compare the ended requests that the quality guard wants compared with full prefills."""
    while True:
        while not ended:
            yield inf
        request = ended.popleft()
        try:
            if guard.wants(request):
                guard.compare(request, generator)
        except KdnError as error:
            trace.event("background.failed", request=request.id, why=str(error))
        yield 0.0
