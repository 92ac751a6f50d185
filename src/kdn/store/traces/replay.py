"""Plays a trace against a policy: the same calls in the same order as a tier would make them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from kdn.core import BlockKey, Served
from kdn.store.policies import EvictionPolicy, Use
from kdn.store.traces.recording import TraceRequest

__all__ = ["ReplayedTier", "replay"]


class ReplayedTier:
    """A tier without bytes: keys and sizes under a cap, and a policy that says which go."""

    def __init__(self, capacity_bytes: int, policy: EvictionPolicy) -> None:
        self._capacity_bytes = capacity_bytes
        self._policy = policy
        self._sizes: dict[BlockKey, int] = {}
        self._size_bytes = 0

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def ask(self, uses: Sequence[Use]) -> int:
        """How many leading blocks are here. All that are here count as used, in order."""
        for key in self._policy.expired(uses[0].at_s) if uses else ():
            self._forget(key)
        hits = next((n for n, use in enumerate(uses) if use.key not in self._sizes), len(uses))
        for use in uses[:hits]:
            self._policy.use(use)
        return hits

    def holds(self, key: BlockKey) -> bool:
        return key in self._sizes

    def insert(self, use: Use, spare: set[BlockKey]) -> bool:
        """Keep a block that was computed, evicting others but those in `spare`. False if refused."""
        if use.key in self._sizes:
            self._policy.use(use)
            return True
        for key in self._policy.expired(use.at_s):
            if key not in spare:
                self._forget(key)
        excess = self._size_bytes + use.size_bytes - self._capacity_bytes
        if excess > 0:
            victims = self._victims(excess, use.at_s, spare) if self._policy.admits(use) else None
            if victims is None:
                return False
            for key in victims:
                self._forget(key)
        self._sizes[use.key] = use.size_bytes
        self._size_bytes += use.size_bytes
        self._policy.insert(use)
        return True

    def check(self) -> None:
        """Audit the sums. Raises AssertionError saying what does not add up."""
        assert self._size_bytes == sum(self._sizes.values()) <= self._capacity_bytes, "bytes differ"
        assert set(self._policy.victims(float("inf"))) == self._sizes.keys(), "keys differ"
        self._policy.check()

    def _victims(self, excess: int, now_s: float, spare: set[BlockKey]) -> list[BlockKey] | None:
        found = []
        for key in self._policy.victims(now_s):
            if key not in spare:
                found.append(key)
                excess -= self._sizes[key]
                if excess <= 0:
                    return found
        return None

    def _forget(self, key: BlockKey) -> None:
        self._size_bytes -= self._sizes.pop(key)
        self._policy.remove(key)


def replay(
    requests: Iterable[TraceRequest], token_bytes: int, capacity_bytes: int, policy: EvictionPolicy
) -> Iterator[Served]:
    """What becomes of each request: leading blocks that are here are read, the others are computed
    and offered to the tier.  Blocks of the running request are not evicted for its later ones."""
    tier = ReplayedTier(capacity_bytes, policy)
    for request in requests:
        uses = request.uses(token_bytes)
        hits = tier.ask(uses)
        own = {use.key for use in uses}
        held = {use.key for use in uses if tier.holds(use.key)}  # some behind one that is gone
        written = [use for use in uses[hits:] if tier.insert(use, own) and use.key not in held]
        yield Served(
            at_s=request.at_s,
            num_tokens=request.input_length,
            output_tokens=request.output_length,
            hit_tokens=sum(use.num_tokens for use in uses[:hits]),
            read_bytes=sum(use.size_bytes for use in uses[:hits]),
            written_bytes=sum(use.size_bytes for use in written),
            held_bytes=tier.size_bytes,
            num_blocks=len(uses),
            hit_blocks=hits,
            written_blocks=len(written),
        )
