"""What a router knows of its servers: what each has stored, how much waits there, whether it answers.

All of it is the router's own record of what it sent and of what came back; a server is asked for
nothing but its health.  Time comes in as an argument, so a simulation uses the same record.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdn.core import PrefillTime
from kdn.errors import BadInput

__all__ = ["Confirmed", "Fleet", "FleetServer", "RoutedPrompt", "StoredChunks", "ToldTokens"]

_MEMORY_S = 2.0
"""An observation weighs by its predicted seconds beside these, so that tiny prompts teach little."""
_SLOWDOWNS = (0.01, 1000.0)
"""How far a server may be from the prefill model before the router no longer follows."""
_BLOCK_TOKENS = 256
"""A server stores whole blocks, so that it may have so many tokens less than it was sent."""
_SURE_SHARE = 0.5
"""Bytes a token differ within a prompt: a server that says it had at least so much of what it was
believed to have may have had all."""


@dataclass(frozen=True)
class RoutedPrompt:
    """A prompt as a router sees it: names of its chunks, each standing for the chunk and all before."""

    chunks: tuple[Hashable, ...]
    num_tokens: int
    chunk_tokens: int

    def tokens_of(self, num_chunks: int) -> int:
        """The tokens of the first `num_chunks` chunks; at least one token is always computed."""
        return max(0, min(num_chunks * self.chunk_tokens, self.num_tokens - 1))


@dataclass(frozen=True)
class ToldTokens:
    """A server's own word of a prompt, in its own tokens."""

    prompt: int
    cached: int
    """Of these, what it had stored before."""


@dataclass(frozen=True)
class Confirmed:
    """The leading chunks of a prompt that a server had in full, by its answers to earlier prompts."""

    num_chunks: int
    use: int
    """The last use of the last of them."""


class StoredChunks:
    """Names of chunks under a cap; the least recently used go first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._num_uses = 0
        self._names: OrderedDict[Hashable, int] = OrderedDict()
        """Each with its last use."""
        self._confirmed: set[Hashable] = set()

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: Hashable) -> bool:
        return name in self._names

    def match(self, chunks: Sequence[Hashable]) -> int:
        """How many leading chunks are here. Not a use."""
        return next((n for n, name in enumerate(chunks) if name not in self._names), len(chunks))

    def store(self, chunks: Sequence[Hashable]) -> None:
        """All of these were computed or read: the beginning of a prompt is used last."""
        self._num_uses += 1
        for name in reversed(chunks):
            self._names[name] = self._num_uses
            self._names.move_to_end(name)
        while len(self._names) > self._capacity:
            self._forget_oldest()

    def confirm(self, chunks: Sequence[Hashable]) -> None:
        """A prompt of these was answered. What was forgotten meanwhile stays so."""
        self._confirmed.update(name for name in chunks if name in self._names)

    def confirmed(self, chunks: Sequence[Hashable]) -> Confirmed:
        """The leading chunks that were confirmed. Not a use."""
        gaps = (n for n, name in enumerate(chunks) if name not in self._confirmed)
        num_chunks = next(gaps, len(chunks))
        return Confirmed(num_chunks, self._names[chunks[num_chunks - 1]] if num_chunks else 0)

    def forget(self) -> None:
        """Forget everything."""
        self._names.clear()
        self._confirmed.clear()

    def forget_before(self, use: int) -> None:
        """Forget what was not used since before `use`, but no more than half of all."""
        for _ in range(len(self._names) // 2):
            if next(iter(self._names.values())) >= use:
                return
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        name, _ = self._names.popitem(last=False)
        self._confirmed.discard(name)


@dataclass
class _Waiting:
    """A prompt that a server has not begun to answer."""

    sent_s: float
    predicted_s: float
    """By the prefill model, before the server's slowdown."""
    chunks: Sequence[Hashable]


@dataclass
class FleetServer:
    """One server."""

    name: str
    stored: StoredChunks
    """Of the prompts that it began to answer: one that it refused taught nothing."""
    is_up: bool = True
    slowdown: float = 1.0
    """Measured prefill time over the model's."""
    models: frozenset[str] | None = None
    """The names of models that it last said it serves; None: it has not said."""
    weights: Mapping[str, Any] = field(default_factory=dict)
    """The digest that it last told of each model, None without one; remembered while it is down."""
    _running: set[int] = field(default_factory=set)
    _waiting: dict[int, _Waiting] = field(default_factory=dict)
    _coming: Counter[Hashable] = field(default_factory=Counter)
    """The chunks of prompts that wait, each as often as it waits."""
    _free_s: float = 0.0
    """When the last first token came: the oldest prefill runs since then."""

    @property
    def num_running(self) -> int:
        """Requests that were sent and have not ended."""
        return len(self._running)

    def may_serve(self, model: str | None) -> bool:
        """Is nothing known against sending it a request for this model?"""
        return model is None or self.models is None or self.lists(model)

    def lists(self, model: str | None) -> bool:
        """Did it last say that it serves this model?"""
        return model in (self.models or ())

    def wait_s(self, now_s: float) -> float:
        """How long a new prompt would wait for those before it."""
        backlog_s = sum(one.predicted_s for one in self._waiting.values()) * self.slowdown
        if not self._waiting:
            return 0.0
        oldest = next(iter(self._waiting.values()))
        running_s = now_s - max(self._free_s, oldest.sent_s)
        return backlog_s - min(running_s, oldest.predicted_s * self.slowdown)

    def match(self, chunks: Sequence[Hashable]) -> int:
        """How many leading chunks it has, or will have once it answers what waits there. Not a use."""
        gaps = (
            n
            for n, name in enumerate(chunks)
            if name not in self.stored and name not in self._coming
        )
        return next(gaps, len(chunks))

    def sent(
        self, number: int, chunks: Sequence[Hashable], predicted_s: float, now_s: float
    ) -> None:
        """A prompt was sent to it."""
        self._running.add(number)
        self._waiting[number] = _Waiting(now_s, predicted_s, chunks)
        self._coming.update(chunks)

    def began(self, number: int, now_s: float) -> None:
        """The first token of an answer came: it has the prompt. Learn from how long it took."""
        one = self._arrived(number)
        if one is None:
            return
        self.stored.store(one.chunks)
        took_s = now_s - max(self._free_s, one.sent_s)
        self._free_s = now_s
        if one.predicted_s > 0:
            ratio = min(max(took_s / one.predicted_s, _SLOWDOWNS[0]), _SLOWDOWNS[1])
            weight = one.predicted_s / (one.predicted_s + _MEMORY_S)
            self.slowdown += weight * (ratio - self.slowdown)

    def ended(self, number: int) -> None:
        """An answer ended, however it did; may be told again. One that had not begun leaves nothing."""
        self._running.discard(number)
        self._arrived(number)

    def lost(self) -> None:
        """It does not answer. Nothing that it had, or was sent, is counted on when it comes back."""
        self.is_up = False
        self.stored.forget()
        self._coming.clear()
        for one in self._waiting.values():
            one.chunks = ()

    def _arrived(self, number: int) -> _Waiting | None:
        """The prompt, which waits no longer; None for one that does not wait."""
        one = self._waiting.pop(number, None)
        for name in () if one is None else one.chunks:
            self._coming[name] -= 1
            if not self._coming[name]:
                del self._coming[name]
        return one


class Fleet:
    """All servers of a router. Not safe from several threads: the event loop calls it."""

    def __init__(
        self, names: Sequence[str], prefill: PrefillTime, capacity_chunks: int = 1 << 18
    ) -> None:
        """`capacity_chunks` is how many chunks each server is believed to hold.

        Raises BadInput without servers, or for one that is named twice.
        """
        if not names or len(set(names)) < len(names):
            raise BadInput(
                f"the servers are {', '.join(names) or 'none'}; name one or more, each once"
            )
        self._prefill = prefill
        self._number = 0
        self.servers = {name: FleetServer(name, StoredChunks(capacity_chunks)) for name in names}

    def up(self) -> list[FleetServer]:
        """Servers that answer, in the order they were named."""
        return [server for server in self.servers.values() if server.is_up]

    def first_token_s(self, server: FleetServer, prompt: RoutedPrompt, now_s: float) -> float:
        """When `server` would begin to answer: its queue, then what it must compute and load."""
        return server.wait_s(now_s) + self._own_s(server, prompt) * server.slowdown

    def begin(self, name: str, prompt: RoutedPrompt, now_s: float) -> int:
        """A prompt is sent to a server, which is believed to store it unless it ends unanswered.

        Returns its number.
        """
        server = self.servers[name]
        self._number += 1
        server.sent(self._number, prompt.chunks, self._own_s(server, prompt), now_s)
        return self._number

    def correct(
        self, name: str, prompt: RoutedPrompt, confirmed: Confirmed, told: ToldTokens
    ) -> None:
        """A server told how much of a prompt it had stored, of which `confirmed` was known as it was sent.

        It has the prompt now. When it had far less, it dropped that and what it used no later, or was
        started again: what was used before is forgotten, at most half of all at a time. Chunks of a
        prompt that is not answered prove nothing: prompts that are sent together are all computed.
        """
        stored = self.servers[name].stored
        share = prompt.tokens_of(confirmed.num_chunks) / prompt.num_tokens
        if told.cached + _BLOCK_TOKENS < _SURE_SHARE * share * told.prompt:
            stored.forget_before(confirmed.use)
        stored.confirm(prompt.chunks)

    def down(self, name: str) -> None:
        """A server does not answer. What it had stored is not counted on when it comes back."""
        self.servers[name].lost()

    def _own_s(self, server: FleetServer, prompt: RoutedPrompt) -> float:
        cached = prompt.tokens_of(server.match(prompt.chunks))
        return self._prefill.seconds(prompt.num_tokens - cached, cached)
