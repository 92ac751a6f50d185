"""The trace: typed events that are always recorded somewhere, by default nowhere.

A part that decides something says so with one line, `trace.event("evict", key=..., ...)`, and
never asks whether anybody listens.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Event", "GuardedTrace", "NoTrace", "Recorder", "Tee", "Trace", "Value"]

_log = logging.getLogger(__name__)

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Event:
    """Something that happened: its name and the facts that go with it."""

    name: str
    fields: Mapping[str, Value]


class Trace(Protocol):
    """Where events go."""

    def event(self, name: str, **fields: Value) -> None:
        """Take note of an event. Never raises, never blocks on I/O."""


class NoTrace:
    """Forgets everything: the default."""

    def event(self, name: str, **fields: Value) -> None:
        return None


class GuardedTrace:
    """Passes events on to a trace, and stops doing so when it fails: a trace costs nobody an answer."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def event(self, name: str, **fields: Value) -> None:
        try:
            self._trace.event(name, **fields)
        except Exception:  # noqa: BLE001  callers' traces may fail in any way
            _log.exception("a trace failed; it is told nothing more")
            self._trace = NoTrace()


class Tee:
    """Tells every event to several listeners, in order. One that raises is told no more; the others are."""

    def __init__(self, *listeners: Trace) -> None:
        self._listeners = tuple(map(GuardedTrace, listeners))

    def event(self, name: str, **fields: Value) -> None:
        for listener in self._listeners:
            listener.event(name, **fields)


class Recorder:
    """Counts every event by name and keeps the last `keep` of them."""

    def __init__(self, keep: int = 10_000) -> None:
        self._lock = threading.Lock()
        self._events: deque[Event] = deque(maxlen=keep)
        self._counts: Counter[str] = Counter()

    def event(self, name: str, **fields: Value) -> None:
        with self._lock:
            self._counts[name] += 1
            self._events.append(Event(name, fields))

    def count(self, name: str) -> int:
        """How often `name` has happened since the start."""
        with self._lock:
            return self._counts[name]

    def events(self, name: str | None = None) -> list[Event]:
        """The remembered events, oldest first, all or those called `name`."""
        with self._lock:
            return [e for e in self._events if name is None or e.name == name]
