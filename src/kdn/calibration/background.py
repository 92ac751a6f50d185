"""What blended answers leave to do, done when nobody waits: documents to prefill, answers to compare.

planned ─> noted ─> its request ends ─> ready ─> the engine is idle ─> done, one at a time
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator

from kdn.core import Generator, Request
from kdn.errors import KdnError
from kdn.reuse.blend.guard import QualityGuard
from kdn.trace import NoTrace, Trace, Value

__all__ = ["BackgroundWork"]

_ENDINGS = ("engine.finish", "engine.fail")
_END = object()
_MOST_READY = 64
"""More blended answers than this are forgotten, oldest first: they come up again."""


class BackgroundWork:
    """Listens to the trace for the ends of requests; works in a thread of its own.

    `wished` gives the requests that store what a blended one lacked; `is_idle` says whether the
    generator has nothing to do.  `first` is begun when a blended answer has ended and goes on step by
    step, once, before anything else: what blending wants to know of the model.
    """

    def __init__(
        self,
        wished: Callable[[Request], list[Request]],
        guard: QualityGuard,
        trace: Trace | None = None,
        first: Callable[[], Iterator[None]] = lambda: iter(()),
    ) -> None:
        self._wished = wished
        self._first: Callable[[], Iterator[None]] | None = first
        self._steps: Iterator[None] | None = None
        self._guard = guard
        self._trace = trace or NoTrace()
        self._changed = threading.Condition()
        self._at_work = threading.Lock()
        """Held while one thing is done, so that who waits for all of it does not overtake the thread."""
        self._noted: dict[str, Request] = {}
        self._ready: deque[Request] = deque(maxlen=_MOST_READY)
        self._closing = False
        self._thread: threading.Thread | None = None

    def note(self, request: Request) -> None:
        """A blended request was planned, perhaps once more."""
        with self._changed:
            self._noted[request.id] = request

    def event(self, name: str, **fields: Value) -> None:
        """As a trace: a noted request's end makes it ready, any end may leave the engine idle."""
        if name not in _ENDINGS:
            return
        with self._changed:
            request = self._noted.pop(str(fields.get("request")), None)
            if request is not None and name == "engine.finish":
                self._ready.append(request)
                self._begin()
            self._changed.notify_all()

    def start(self, generator: Generator, is_idle: Callable[[], bool]) -> None:
        """Work through what is ready whenever `is_idle`, until closed."""
        self._thread = threading.Thread(
            target=self._run, args=(generator, is_idle), name="kdn-background", daemon=True
        )
        self._thread.start()

    def work(self, generator: Generator) -> int:
        """Do now what is ready, or will be when the requests under way have ended.

        The number of requests that were looked after.
        """
        done = 0
        with self._changed:
            self._changed.wait_for(lambda: self._closing or not self._noted)
        while self._step():
            pass
        while self._look_after_one(generator):
            done += 1
        return done

    def close(self) -> None:
        """Stop working. What was not begun is forgotten. Calling it twice is harmless."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def check(self) -> None:
        """Audit the books. Raises AssertionError."""
        with self._changed:
            assert not {r.id for r in self._ready} & set(self._noted), "ready before its end"

    def _run(self, generator: Generator, is_idle: Callable[[], bool]) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or (self._ready and is_idle()))
                if self._closing:
                    return
            if not self._step():
                self._look_after_one(generator)

    def _begin(self) -> None:
        if self._first is not None:
            self._steps, self._first = self._first(), None

    def _step(self) -> bool:
        """One step of what comes first; False when it is done."""
        with self._at_work:
            if self._steps is None:
                return False
            if next(self._steps, _END) is _END:
                self._steps = None
            return True

    def _look_after_one(self, generator: Generator) -> bool:
        with self._at_work:
            with self._changed:
                if not self._ready:
                    return False
                request = self._ready.popleft()
            self._look_after(request, generator)
            return True

    def _look_after(self, request: Request, generator: Generator) -> None:
        try:
            for one in self._wished(request):
                for _ in generator.submit(one):
                    pass
            if self._guard.wants(request):
                self._guard.compare(request, generator)
        except KdnError as error:
            self._trace.event("background.failed", request=request.id, why=str(error))
