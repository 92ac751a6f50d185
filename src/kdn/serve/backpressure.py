"""What may wait: requests, tokens and bytes, of one caller and in all; and how a server stops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from kdn.serve.errors import Refused
from kdn.serve.limits import Limits

__all__ = ["Backpressure", "Held"]

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
