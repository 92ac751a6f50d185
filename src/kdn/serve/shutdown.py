"""How a server stops: new requests are refused, running ones finish within the grace or are ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from kdn.clock import Clock
from kdn.errors import Cancelled

__all__ = ["Abortable", "Shutdown"]


class Abortable(Protocol):
    """An answer under way that can be ended with an error, which its client is told."""

    def abort(self, error: Exception) -> None: ...


class Shutdown:
    """The state of one server's stop. Used on the event loop; `begin` also in a signal handler."""

    def __init__(self, grace_s: float, clock: Clock) -> None:
        self._grace_s = grace_s
        self._clock = clock
        self._deadline_s: float | None = None
        self._num_active = 0
        self._running: set[Abortable] = set()

    @property
    def has_begun(self) -> bool:
        """Are new requests refused?"""
        return self._deadline_s is not None

    def begin(self, grace_s: float | None = None) -> None:
        """Refuse new requests from now on. Calling it again changes nothing."""
        if self._deadline_s is None:
            grace_s = self._grace_s if grace_s is None else grace_s
            self._deadline_s = self._clock.now() + grace_s

    @contextmanager
    def active(self) -> Iterator[None]:
        """One HTTP request is being answered inside."""
        self._num_active += 1
        try:
            yield
        finally:
            self._num_active -= 1

    def follow(self, answer: Abortable) -> None:
        """`answer` has begun."""
        self._running.add(answer)

    def forget(self, answer: Abortable) -> None:
        """`answer` has ended. Harmless for one that is not followed."""
        self._running.discard(answer)

    def is_over(self) -> bool:
        """May the server end? True when all is answered; at the deadline what runs is aborted."""
        if self._deadline_s is None:
            return False
        if self._num_active and self._clock.now() < self._deadline_s:
            return False
        error = Cancelled("the server is stopping and ended this answer before its end")
        for answer in list(self._running):
            answer.abort(error)
        return True
