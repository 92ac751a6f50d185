"""What a server has in work: how much of it callers may hold, and how it ends when the server stops."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Protocol

import uvicorn

from kdn.clock import Clock
from kdn.errors import Cancelled
from kdn.serve.errors import Refused
from kdn.serve.limits import Limits

__all__ = ["Abortable", "Backpressure", "Held", "Server", "Shutdown"]

_TOKENS_PER_S = 2000
"""For `Retry-After`: how fast prompts are computed, a laptop's order of magnitude."""


@dataclass(frozen=True)
class Held:
    """What one HTTP request holds until it has ended."""

    requests: int = 0
    tokens: int = 0
    size_bytes: int = 0


@dataclass
class _Sum:
    """What is held together."""

    held: Counter[str] = field(default_factory=Counter)

    def add(self, more: Held, sign: int = 1) -> None:
        for name, value in vars(more).items():
            self.held[name] += sign * value

    def beyond(self, more: Held, bounds: Held) -> str | None:
        """The name of the bound that `more` would break. What is alone always fits."""
        for name, value in vars(more).items():
            now, most = self.held[name], getattr(bounds, name)
            if value and now and now + value > most:
                return name
        return None


class Backpressure:
    """Counts what callers hold, and refuses what is more than the limits. Used on the event loop."""

    def __init__(self, limits: Limits) -> None:
        self._of_one = Held(limits.caller_requests, limits.caller_tokens, limits.caller_bytes)
        self._of_all = Held(limits.all_requests, limits.all_tokens, limits.all_bytes)
        self._all = _Sum()
        self._callers: dict[str, _Sum] = {}

    @contextmanager
    def hold(self, caller: str, held: Held) -> Iterator[None]:
        """Hold as long as the `with` lasts. Raises Refused: 429 for the caller's bound, 503 for all's."""
        self.take(caller, held)
        try:
            yield
        finally:
            self.give_back(caller, held)

    def take(self, caller: str, held: Held) -> None:
        """Hold until `give_back` with the same. Raises Refused, and holds nothing then."""
        own = self._callers.get(caller, _Sum())
        if broken := own.beyond(held, self._of_one):
            raise self._refused(429, broken, "this key's", own, self._of_one)
        if broken := self._all.beyond(held, self._of_all):
            raise self._refused(503, broken, "the server's", self._all, self._of_all)
        self._callers.setdefault(caller, own).add(held)
        self._all.add(held)

    def give_back(self, caller: str, held: Held) -> None:
        """End what was taken."""
        own = self._callers[caller]
        own.add(held, -1)
        self._all.add(held, -1)
        if not any(own.held.values()):
            del self._callers[caller]

    def check(self) -> None:
        """Raise AssertionError unless the sums of callers are the sum of all. For tests."""
        for name in vars(self._of_all):
            total = sum(own.held[name] for own in self._callers.values())
            assert total == self._all.held[name] >= 0, f"{name}: {total}, {self._all.held[name]}"

    def _refused(self, status: int, name: str, whose: str, held: _Sum, bounds: Held) -> Refused:
        wait_s = max(1, min(60, held.held["tokens"] // _TOKENS_PER_S))
        what = {"size_bytes": "bytes of bodies"}.get(name, name)
        return Refused(
            f"{held.held[name]} {what} are being worked on, and {whose} limit is "
            f"{getattr(bounds, name)}: send again in {wait_s} s",
            status=status,
            code="overloaded",
            retry_after_s=wait_s,
        )


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


class Server(uvicorn.Server):
    """The first signal begins the stop, which lasts no longer than the grace; the second one ends
    the process."""

    def __init__(self, config: uvicorn.Config, shutdown: Shutdown) -> None:
        super().__init__(config)
        self._shutdown = shutdown

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._shutdown.has_begun:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self._captured_signals.append(sig)  # raised again by uvicorn once the server has ended
        self._shutdown.begin()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: is it time to end?"""
        return await super().on_tick(counter) or self._shutdown.is_over()
