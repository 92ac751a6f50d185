"""Idle time: one thread that runs work in steps while the engine has nothing to do.

    a request ends ─> is the engine idle? ─> the first work that has something to do runs one step
                             │ no                       │ none has
                             └──────── wait <───────────┘

A request that comes meanwhile waits for one step at most.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from collections.abc import Generator as Steps
from dataclasses import dataclass
from math import inf

from kdn.clock import Clock
from kdn.core import Generator, Request, Stream
from kdn.errors import Cancelled
from kdn.trace import Trace, Value

__all__ = ["EndedRequests", "Idle", "IdleSteps", "IdleWork"]

IdleSteps = Steps[float, None, None]
"""Work in steps. Each yields 0 when it has done something, else the seconds after which to ask again;
`inf`: not before another request has ended."""

_ENDINGS = ("engine.finish", "engine.fail")
_BUSY_S = 0.25
"""How long until a busy engine is asked again."""
_MOST_READY = 64
"""More blended answers than this are forgotten, oldest first: they come up again."""


@dataclass
class IdleWork:
    """Steps with the name that a failure is reported under, and what says that there are any."""

    name: str
    steps: IdleSteps
    queue: Collection[Request] | None = None
    """What it works off. A work that had nothing to do is not asked again while this is empty."""
    after_s: float = 0.0
    """For how long no request must have ended before each step."""
    is_waiting: bool = False
    """It had nothing to do when it was last asked."""

    def waits_s(self, quiet_s: float | None) -> float:
        """How long until it is to be asked, after `quiet_s` seconds without the end of a request."""
        if self.is_waiting and self.queue is not None and not self.queue:
            return inf
        if not self.after_s:
            return 0.0
        return inf if quiet_s is None else max(self.after_s - quiet_s, 0.0)


class Idle:
    """Runs works in the order given, each step of an earlier one first, until closed.

    A work that raises is the event `idle.failed`, and is not asked again.  Listens to the trace for the
    ends of requests; what works submit through it is cancelled when it is closed.
    """

    def __init__(self, clock: Clock, trace: Trace) -> None:
        self._clock, self._trace = clock, trace
        self._ended_s: float | None = None
        self._woken = threading.Event()
        self._closing = threading.Event()
        self._at_work = threading.Lock()
        """Held for each step: callers of `finish` and the thread take turns."""
        self._works: list[IdleWork] = []
        self._generator: Generator | None = None
        self._streams: list[Stream] = []
        self._streams_lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(
        self, generator: Generator, is_idle: Callable[[], bool], works: Sequence[IdleWork]
    ) -> None:
        """Run `works` whenever `is_idle`. To be called once, when all is built."""
        self._generator = generator
        self._works = list(works)
        if works:
            self._thread = threading.Thread(
                target=self._run, args=(is_idle,), name="kdn-idle", daemon=True
            )
            self._thread.start()

    @property
    def names(self) -> tuple[str, ...]:
        """The works that are not finished."""
        return tuple(work.name for work in self._works)

    def quiet_s(self) -> float | None:
        """The seconds since a request has ended; None before the first."""
        return None if self._ended_s is None else self._clock.now() - self._ended_s

    def event(self, name: str, **fields: Value) -> None:
        """As a trace: the end of any request may leave the engine idle."""
        if name in _ENDINGS:
            self._ended_s = self._clock.now()
            self._woken.set()

    def submit(self, request: Request) -> Stream:
        """As the engine's, for works: cancelled when idle time is over for good."""
        assert self._generator is not None, "works run after `start`"
        with self._streams_lock:
            if self._closing.is_set():
                raise Cancelled(f"request {request.id}: the model is being closed")
            stream = self._generator.submit(request)
            self._streams.append(stream)
        return stream

    def finish(self, *names: str) -> None:
        """Do now, in the caller's thread, what the named works have to do, whether idle or not."""
        for work in [work for work in self._works if work.name in names]:
            while self._step(work) == 0:
                pass

    def close(self) -> None:
        """Stop after the step under way, which is cut short. Calling it twice is harmless."""
        with self._streams_lock:
            self._closing.set()
            for stream in self._streams:
                stream.cancel()
        self._woken.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, is_idle: Callable[[], bool]) -> None:
        while not self._closing.is_set():
            self._woken.clear()
            wait_s = self._turn() if is_idle() else _BUSY_S
            if wait_s:
                self._woken.wait(None if wait_s == inf else wait_s)
        with self._at_work:
            for work in self._works:
                work.steps.close()

    def _turn(self) -> float:
        """One step of the first work that has something to do; else how long all of them wait."""
        wait_s = inf
        for work in tuple(self._works):
            own_s = self._step(work)
            if own_s == 0:
                return 0.0
            wait_s = min(wait_s, own_s)
        return wait_s

    def _step(self, work: IdleWork) -> float:
        with self._at_work:
            if self._closing.is_set() or work not in self._works:
                return inf
            if wait_s := work.waits_s(self.quiet_s()):
                return wait_s
            try:
                wait_s = next(work.steps)
                work.is_waiting = wait_s > 0
                return wait_s
            except StopIteration:
                self._works.remove(work)
            except Exception as error:  # noqa: BLE001  a fault in one work costs that work alone
                self._works.remove(work)
                if not self._closing.is_set():
                    self._trace.event("idle.failed", work=work.name, why=repr(error))
            finally:
                with self._streams_lock:
                    self._streams.clear()
            return inf


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

    def forget(self, request_id: str) -> None:
        """The request was planned, and no engine will say how it ended."""
        with self._changed:
            self._noted.pop(request_id, None)
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
        """Check that no request is both under way and over. Raises AssertionError."""
        with self._changed:
            for queue in self._queues:
                assert not {r.id for r in queue} & set(self._noted), "ready before its end"
