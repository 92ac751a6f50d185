"""Calls to a remote tier: each ends by a deadline, is tried again, and may be refused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TookTooLong
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

from kdn.clock import Clock
from kdn.errors import KdnError, Unreachable
from kdn.store.tiers.remote.breaker import Breaker, BreakerSettings

__all__ = ["RemoteCallSettings", "RemoteCaller"]

T = TypeVar("T")


@dataclass(frozen=True)
class RemoteCallSettings:
    """How patient to be with a remote tier."""

    timeout_s: float = 2.0
    """The most that one call may take, tries and pauses included."""
    attempts: int = 2
    """How often a call that failed is made in all, within `timeout_s`."""
    pause_s: float = 0.05
    """The longest pause before the second try; it doubles with each, and its length is random."""
    workers: int = 8
    """Calls that may be under way together."""
    breaker: BreakerSettings = field(default_factory=BreakerSettings)


class RemoteCaller:
    """Makes calls in threads of its own and waits for them no longer than the deadline.

    A call that hangs is abandoned, whatever it hangs in; its result is thrown away.
    """

    def __init__(self, name: str, settings: RemoteCallSettings, clock: Clock, rng: Random) -> None:
        self.name = name
        self.settings = settings
        self._clock = clock
        self._rng = rng
        self._breaker = Breaker(settings.breaker, clock, rng)
        self._pool = ThreadPoolExecutor(settings.workers, thread_name_prefix=f"kdn-{name}")
        self._closed = threading.Event()

    @property
    def is_open(self) -> bool:
        """Would a call be made now, rather than refused?"""
        return not self._breaker.is_open()

    def ask(self, doing: str, call: Callable[[], T], timeout_s: float | None = None) -> T:
        """What `call` returns. Raises Unreachable when it fails, is refused or takes too long.

        Only that counts as a failure of the tier, and only then is it tried again; an error that is no
        KdnError is one, too.
        """
        deadline = self._clock.now() + (timeout_s or self.settings.timeout_s)
        for attempt in range(1, self.settings.attempts + 1):
            if not self._breaker.enter():
                raise Unreachable(f"{doing}: {self.name} failed lately, its circuit is open")
            try:
                found = self._within(doing, call, deadline)
            except Unreachable:
                self._breaker.failed()
                if attempt == self.settings.attempts or not self._paused(attempt, deadline):
                    raise
            except KdnError:  # the tier answered
                self._breaker.succeeded()
                raise
            else:
                self._breaker.succeeded()
                return found
        raise AssertionError("unreachable")

    def start(self, doing: str, call: Callable[[], T]) -> Future[T]:
        """Begin something that no caller waits for; `finish` gives what it brought.

        Raises Unreachable once this is closed.
        """
        try:
            return self._pool.submit(call)
        except RuntimeError as error:
            raise Unreachable(f"{doing}: {self.name} is closed") from error

    def finish(self, doing: str, done: Future[T]) -> T:
        """What a call that was started, and is done, brought. Raises Unreachable when it failed.

        It counts as one call, but what is here already is refused by no circuit and waits for no thread.
        """
        counts = self._breaker.enter()
        try:
            found = self._outcome(doing, done, 0.0)
        except Unreachable:
            if counts:
                self._breaker.failed()
            raise
        except KdnError:
            if counts:
                self._breaker.succeeded()
            raise
        if counts:
            self._breaker.succeeded()
        return found

    def close(self) -> None:
        """No more calls. What hangs ends with its own socket's time-out."""
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _within(self, doing: str, call: Callable[[], T], deadline: float) -> T:
        left_s = deadline - self._clock.now()
        return self._outcome(doing, self.start(doing, call), max(left_s, 0.0))

    def _outcome(self, doing: str, future: Future[T], left_s: float) -> T:
        try:
            return future.result(left_s)
        except TookTooLong as error:
            future.cancel()
            raise Unreachable(f"{doing}: no answer from {self.name} in time") from error
        except KdnError:
            raise
        except Exception as error:
            raise Unreachable(
                f"{doing}: {self.name} gave what cannot be read: {error!r}"
            ) from error

    def _paused(self, attempt: int, deadline: float) -> bool:
        """Wait before the next try; False when the deadline would pass meanwhile."""
        pause_s = self._rng.random() * self.settings.pause_s * 2 ** (attempt - 1)
        if self._clock.now() + pause_s >= deadline:
            return False
        return not self._closed.wait(pause_s)
