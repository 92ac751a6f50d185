"""Which server a prompt goes to, as a list: the first is tried first, the next one when it fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import xxhash

from kdn.scale.router.fleet import Fleet, FleetServer, RoutedPrompt

__all__ = ["RULES", "KvAware", "LeastLoaded", "PrefixHash", "RoundRobin", "RoutingRule"]

_HASHED_CHUNKS = 4
"""How much of a prompt's beginning `PrefixHash` looks at."""


class RoutingRule(Protocol):
    """Orders the servers that are up. It may remember, but decides by what it is given."""

    def order(self, prompt: RoutedPrompt, fleet: Fleet, now_s: float) -> list[FleetServer]:
        """All servers that are up, the best first."""


class KvAware:
    """The earliest first token: the queue, and the prefill of what the server has not stored.

    Equal servers are told apart by the prompt's beginning, so that a prompt nobody has stored goes
    where its next turn will go: content alone is sticky, no client and no session is.
    """

    def order(self, prompt: RoutedPrompt, fleet: Fleet, now_s: float) -> list[FleetServer]:
        return sorted(
            fleet.up(),
            key=lambda server: (
                round(fleet.first_token_s(server, prompt, now_s), 6),
                _rank(prompt, server),
            ),
        )


class RoundRobin:
    """Each server in its turn."""

    def __init__(self) -> None:
        self._turn = 0

    def order(self, prompt: RoutedPrompt, fleet: Fleet, now_s: float) -> list[FleetServer]:
        servers = fleet.up()
        if not servers:
            return []
        first = self._turn % len(servers)
        self._turn += 1
        return servers[first:] + servers[:first]


class LeastLoaded:
    """The fewest requests that have not ended."""

    def order(self, prompt: RoutedPrompt, fleet: Fleet, now_s: float) -> list[FleetServer]:
        return sorted(fleet.up(), key=lambda server: (server.num_running, _rank(prompt, server)))


class PrefixHash:
    """By the hash of a prompt's beginning alone, with few moves when a server goes or comes.

    Rendezvous hashing (Thaler and Ravishankar, A name-based mapping scheme for rendezvous, 1996).
    """

    def order(self, prompt: RoutedPrompt, fleet: Fleet, now_s: float) -> list[FleetServer]:
        return sorted(fleet.up(), key=lambda server: _rank(prompt, server))


RULES: Mapping[str, Callable[[], RoutingRule]] = {
    "kv-aware": KvAware,
    "round-robin": RoundRobin,
    "least-loaded": LeastLoaded,
    "prefix-hash": PrefixHash,
}
"""Every rule by its name."""


def _rank(prompt: RoutedPrompt, server: FleetServer) -> int:
    """A number that the prompt's beginning and the server's name give, on every machine."""
    beginning = prompt.chunks[:_HASHED_CHUNKS][-1] if prompt.chunks else prompt.num_tokens
    return xxhash.xxh3_64_intdigest(f"{beginning!r}:{server.name}".encode())
