"""A trace through the router's own rules, with servers on paper: one prefill at a time, first come first
served, a prefix cache of whole chunks, the least recently used gone first.

Answers are generated beside the prefills and slow nothing down.  A server that dies loses its cache;
what it had not begun to answer is sent to the next server, as the router does, and waits from the
time it came.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from kdn.core import PrefillTime, quantile
from kdn.scale.router.fleet import Fleet, RoutedPrompt, StoredChunks
from kdn.scale.router.rules import RoutingRule

__all__ = ["Outage", "RoutedRequest", "RoutingOutcome", "simulate_routing"]


@dataclass(frozen=True)
class RoutedRequest:
    """A request of a trace."""

    at_s: float
    prompt: RoutedPrompt
    answer_s: float = 0.0
    """How long its answer takes after the first token."""


@dataclass(frozen=True)
class Outage:
    """A server is gone from `start_s` on, and comes back empty at `stop_s`."""

    server: str
    start_s: float
    stop_s: float


@dataclass
class RoutingOutcome:
    """What became of all requests."""

    first_token_s: list[float] = field(default_factory=list)
    """From arrival, of each request that began to be answered, in order of beginning."""
    num_tokens: int = 0
    cached_tokens: int = 0
    num_retried: int = 0
    """Sent to another server since theirs died before the first token."""
    num_cut: int = 0
    """Ended by their server's death while they were being answered."""
    num_refused: int = 0
    """Came while no server answered."""

    @property
    def hit_rate(self) -> float:
        """Of the prompt tokens, the share that was not computed."""
        return self.cached_tokens / max(1, self.num_tokens)

    @property
    def mean_s(self) -> float:
        """Mean time to the first token."""
        return sum(self.first_token_s) / max(1, len(self.first_token_s))

    def quantile_s(self, share: float) -> float:
        """The time to the first token that `share` of the requests do not exceed."""
        return quantile(self.first_token_s, share) if self.first_token_s else 0.0


@dataclass
class _Sent:
    request: RoutedRequest
    number: int
    cached: int = 0


@dataclass
class _PaperServer:
    stored: StoredChunks
    queue: deque[_Sent] = field(default_factory=deque)
    answering: dict[int, _Sent] = field(default_factory=dict)
    life: int = 0
    """Counts deaths, so that events of an earlier life are told apart."""


_Event = tuple[float, int, str, str, int, int]
"""When, a number that keeps the order, what, the server, its life, the request's number."""


class _World:
    def __init__(
        self, fleet: Fleet, rule: RoutingRule, prefill: PrefillTime, capacity_chunks: int
    ) -> None:
        self._fleet = fleet
        self._rule = rule
        self._prefill = prefill
        self._servers = {
            name: _PaperServer(StoredChunks(capacity_chunks)) for name in fleet.servers
        }
        self._events: list[_Event] = []
        self._count = 0
        self.outcome = RoutingOutcome()

    def post(self, at_s: float, what: str, name: str, number: int = 0) -> None:
        self._count += 1
        life = self._servers[name].life
        heapq.heappush(self._events, (at_s, self._count, what, name, life, number))

    def until(self, now_s: float) -> None:
        """All events up to then."""
        while self._events and self._events[0][0] <= now_s:
            at_s, _, what, name, life, number = heapq.heappop(self._events)
            if what == "die":
                self._die(name, at_s)
            elif what == "rise":
                self._fleet.servers[name].is_up = True
            elif life == self._servers[name].life and what == "first":
                self._first(name, at_s)
            elif life == self._servers[name].life:
                self._servers[name].answering.pop(number)
                self._fleet.servers[name].ended(number)

    def send(self, request: RoutedRequest, now_s: float) -> None:
        servers = self._rule.order(request.prompt, self._fleet, now_s)
        if not servers:
            self.outcome.num_refused += 1
            return
        name = servers[0].name
        sent = _Sent(request, self._fleet.begin(name, request.prompt, now_s))
        self._servers[name].queue.append(sent)
        if len(self._servers[name].queue) == 1:
            self._start(name, now_s)

    def _start(self, name: str, now_s: float) -> None:
        """The prefill of the first prompt in the queue."""
        server = self._servers[name]
        sent = server.queue[0]
        prompt = sent.request.prompt
        sent.cached = prompt.tokens_of(server.stored.match(prompt.chunks))
        seconds = self._prefill.seconds(prompt.num_tokens - sent.cached, sent.cached)
        self.post(now_s + seconds, "first", name)

    def _first(self, name: str, now_s: float) -> None:
        server = self._servers[name]
        sent = server.queue.popleft()
        server.stored.store(sent.request.prompt.chunks)
        server.answering[sent.number] = sent
        self._fleet.servers[name].began(sent.number, now_s)
        self.outcome.first_token_s.append(now_s - sent.request.at_s)
        self.outcome.num_tokens += sent.request.prompt.num_tokens
        self.outcome.cached_tokens += sent.cached
        self.post(now_s + sent.request.answer_s, "end", name, sent.number)
        if server.queue:
            self._start(name, now_s)

    def _die(self, name: str, now_s: float) -> None:
        server = self._servers[name]
        lost, server.queue = list(server.queue), deque()
        self.outcome.num_cut += len(server.answering)
        for number in (*server.answering, *(sent.number for sent in lost)):
            self._fleet.servers[name].ended(number)
        server.answering.clear()
        server.stored.forget()
        server.life += 1
        self._fleet.down(name)
        for sent in lost:
            self.outcome.num_retried += 1
            self.send(sent.request, now_s)


def simulate_routing(
    requests: Sequence[RoutedRequest],
    fleet: Fleet,
    rule: RoutingRule,
    prefill: PrefillTime,
    capacity_chunks: int,
    outages: Sequence[Outage] = (),
) -> RoutingOutcome:
    """Every request, in order of time, to the end of its answer. `fleet` must be new."""
    world = _World(fleet, rule, prefill, capacity_chunks)
    for outage in outages:
        world.post(outage.start_s, "die", outage.server)
        world.post(outage.stop_s, "rise", outage.server)
    for request in sorted(requests, key=lambda one: one.at_s):
        world.until(request.at_s)
        world.send(request, request.at_s)
    world.until(float("inf"))
    return world.outcome


def with_hot_prefix(
    requests: Sequence[RoutedRequest], prefix: RoutedPrompt, every: int
) -> Iterator[RoutedRequest]:
    """Every so-manieth request begins with the same document, as when all ask about one text."""
    for number, request in enumerate(requests):
        if number % every:
            yield request
            continue
        own = tuple((prefix.chunks[-1], name) for name in request.prompt.chunks)
        yield replace(
            request,
            prompt=replace(
                request.prompt,
                chunks=(*prefix.chunks, *own),
                num_tokens=prefix.num_tokens + request.prompt.num_tokens,
            ),
        )
