"""Idle time: one thread that runs work in steps while the engine has nothing to do.

    a request ends ─> is the engine idle? ─> the first work that has something to do runs one step
                             │ no                       │ none has
                             └──────── wait <───────────┘

A request that comes meanwhile waits for one step at most.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from collections.abc import Generator as Steps
from contextlib import closing
from dataclasses import dataclass
from math import inf
from typing import Protocol

from kdn.clock import Clock
from kdn.core import Generator, JctModel, Request, Stream
from kdn.errors import Cancelled
from kdn.trace import Trace, Value

__all__ = ["Idle", "IdleSteps", "IdleWork", "JctMeasuring", "jct_steps"]

IdleSteps = Steps[float, None, None]
"""Work in steps. Each yields 0 when it has done something, else the seconds after which to ask again;
`inf`: not before another request has ended."""

_ENDINGS = ("engine.finish", "engine.fail")
_BUSY_S = 0.25
"""How long until a busy engine is looked at again."""
_ROUNDS = 3


@dataclass(frozen=True)
class IdleWork:
    """Steps with the name that a failure is reported under."""

    name: str
    steps: IdleSteps


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
            try:
                return next(work.steps)
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


# --- the time of a prompt --------------------------------------------------------------------


class JctMeasuring(Protocol):
    """What measures: `JctMeter` of `times.py`, or a stand-in for tests."""

    points: list[tuple[int, int, int]]

    def measure(self, point: tuple[int, int, int]) -> None:
        """One pass; the first of each kind only warms up."""
        ...

    def fit(self) -> JctModel:
        """The model of what was measured."""
        ...

    def close(self) -> None:
        """Throw everything away."""
        ...


def jct_steps(
    meter: Callable[[], JctMeasuring],
    quiet_s: Callable[[], float | None],
    after_s: float,
    keep: Callable[[JctModel], None],
    trace: Trace,
) -> IdleSteps:
    """Measure how long prompts take, once: after requests have come, and none for `after_s`.

    A request that comes meanwhile starts the wait again; nothing is kept of a fit that was not
    finished.
    """
    yield from _until_quiet(quiet_s, after_s)
    with closing(meter()) as measuring:
        for _ in range(_ROUNDS + 1):
            for point in measuring.points:
                yield from _until_quiet(quiet_s, after_s)
                measuring.measure(point)
                yield 0.0
        found = measuring.fit()
    keep(found)
    trace.event("jct.fit", error=found.error)


def _until_quiet(quiet_s: Callable[[], float | None], after_s: float) -> IdleSteps:
    while (quiet := quiet_s()) is None or quiet < after_s:
        yield inf if quiet is None else after_s - quiet
