"""The works of idle time: measure key bias and the time of prompts, prefill documents, compare answers.

a request that asks for a technique ends ─> in the queue of every work ─> a step of idle time each
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from math import inf
from typing import Protocol

from kdn.calibration.idle import IdleSteps
from kdn.core import Generator, JctModel, Request
from kdn.errors import KdnError
from kdn.trace import Trace

__all__ = [
    "Comparing",
    "JctMeasuring",
    "bias_steps",
    "comparison_steps",
    "jct_steps",
    "prefill_steps",
]

_ROUNDS = 3


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
    ended: deque[Request], guard: Comparing, generator: Generator, trace: Trace
) -> IdleSteps:
    """Compare the ended requests that a guard wants compared with full prefills."""
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


class Comparing(Protocol):
    """What compares answers: the guard of blending, or that of sharing."""

    def wants(self, request: Request) -> bool:
        """Is this one to be compared?"""

    def compare(self, request: Request, generator: Generator) -> None:
        """Compare it, and draw the conclusion. Raises KdnError."""


class JctMeasuring(Protocol):
    """What measures: `JctMeter` of `times.py`, or a stand-in for tests."""

    points: list[tuple[int, int, int]]

    def measure(self, point: tuple[int, int, int]) -> None:
        """One pass; the first of each kind only warms up."""

    def fit(self) -> JctModel:
        """The model of what was measured."""

    def close(self) -> None:
        """Throw everything away."""


def jct_steps(
    meter: Callable[[], JctMeasuring], keep: Callable[[JctModel], None], trace: Trace
) -> IdleSteps:
    """Measure how long prompts take, once. Nothing is kept of a fit that was not finished."""
    with closing(meter()) as measuring:
        for _ in range(_ROUNDS + 1):
            for point in measuring.points:
                measuring.measure(point)
                yield 0.0
        found = measuring.fit()
    keep(found)
    trace.event("jct.fit", error=found.error)
