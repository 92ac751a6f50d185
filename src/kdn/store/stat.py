"""What a store has done and holds, in numbers: every outcome is counted, and told to the trace."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from kdn.core import BlockKey
from kdn.errors import CorruptBlock, LostBlock, StoreError
from kdn.store.tiers.tier import Tier, TierUsage
from kdn.trace import Trace

__all__ = ["COUNTED", "Outcomes", "ScrubReport", "StoreStat"]

COUNTED = (
    "lookups", "lookup_tokens", "match_tokens", "hits", "hit_tokens", "misses", "corrupt", "lost", "puts",
    "put_bytes", "dropped", "failed", "not_worth_writing",
)  # fmt: skip
"""The counts of `StoreStat` that only grow."""


@dataclass(frozen=True)
class StoreStat:
    """Counts since the store was opened, and what the tiers held when they last looked."""

    tiers: Mapping[str, TierUsage]
    """By name, fastest first."""
    blocks: int
    """Different blocks that can be found."""
    lookups: int
    """How often `match` was asked."""
    lookup_tokens: int
    """Tokens that `match` was asked for."""
    match_tokens: int
    """Tokens that `match` found."""
    hits: int
    """Blocks that were opened."""
    hit_tokens: int
    """Tokens that were wanted of them."""
    misses: int
    """Blocks that were asked for and could not be had."""
    corrupt: int
    """Damaged blocks that were met and put out of use."""
    lost: int
    """Blocks whose tier broke off before their end; they were computed again."""
    puts: int
    """Blocks that became durable in the last local tier, written synchronously or behind."""
    put_bytes: int
    evicted: int
    """Blocks that tiers gave up for room."""
    dropped: int
    """Times a block found no room in a tier it was meant for, or in the queue to it."""
    failed: int
    """Times a tier could not be used; each was survived as a miss or a block that is not stored."""
    not_worth_writing: int
    """Times a block was not written to a tier because no use would have repaid it there."""
    queued_bytes: int
    """Bytes that wait to be written behind."""
    bytes_per_s: Mapping[str, float] = field(default_factory=dict)
    """How fast each tier gave lately, of those that were read from."""
    delivered: Mapping[str, int] = field(default_factory=dict)
    """Bytes that were delivered against a deadline, by the codec they came in or were asked for."""
    open_circuits: tuple[str, ...] = ()
    """Tiers that are not asked for a while, after failures."""


@dataclass(frozen=True)
class ScrubReport:
    """What reading everything found."""

    blocks: int
    size_bytes: int
    corrupt: tuple[BlockKey, ...]
    """Damaged blocks, now out of use."""


class Outcomes:
    """Counts what becomes of blocks, and tells the trace. Safe from several threads.

    Nothing here raises: the caller goes on with a miss, or with a block that is not stored.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._delivered: Counter[str] = Counter()

    def count(self, **amounts: int) -> int:
        """Add to counts; the new value of the first."""
        with self._lock:
            self._counts.update(amounts)
            return self._counts[next(iter(amounts))]

    def counts(self) -> dict[str, int]:
        """Every count of COUNTED."""
        with self._lock:
            return {name: self._counts[name] for name in COUNTED}

    def delivered_bytes(self) -> dict[str, int]:
        """Bytes delivered, by level."""
        with self._lock:
            return dict(sorted(self._delivered.items()))

    def hit(self, key: BlockKey, num_tokens: int, tier: str) -> int:
        """A block was opened; how many were by now."""
        self._trace.event("store.hit", key=key, tokens=num_tokens, tier=tier)
        return self.count(hits=1, hit_tokens=num_tokens)

    def missed(self, key: BlockKey, num_tokens: int) -> None:
        """A block was wanted and no tier could give it."""
        self.count(misses=1)
        self._trace.event("store.miss", key=key, tokens=num_tokens)

    def put(self, tier: Tier, key: BlockKey, size_bytes: int) -> None:
        """A block is durable."""
        self.count(puts=1, put_bytes=size_bytes)
        self._trace.event("store.put", tier=tier.name, key=key, size_bytes=size_bytes)

    def removed(self, key: BlockKey) -> None:
        """A block was dropped on request."""
        self._trace.event("store.drop", key=key)

    def dropped(self, key: BlockKey, where: str, reason: str) -> None:
        """A block found no room in a tier or in the queue to it."""
        self.count(dropped=1)
        self._trace.event("store.refuse", tier=where, key=key, reason=reason)

    def not_worth_writing(self, tier: Tier, key: BlockKey) -> None:
        """No use would repay writing the block to that tier."""
        self.count(not_worth_writing=1)
        self._trace.event("store.not_worth_writing", tier=tier.name, key=key)

    def delivered(self, key: BlockKey, first: int, last: int, level: str, size_bytes: int) -> None:
        """Layers came, or were sent, at a level."""
        with self._lock:
            self._delivered[level] += size_bytes
        self._trace.event(
            "store.level", key=key, first=first, last=last, level=level, size_bytes=size_bytes
        )

    def failed(self, tier: Tier, error: StoreError) -> None:
        """A tier could not be used."""
        self.count(failed=1)
        self._trace.event("store.failed", tier=tier.name, reason=str(error))

    def corrupt(self, tier: Tier, key: BlockKey, error: CorruptBlock) -> None:
        """Damaged: put out of use, and to be computed again. Lost on the way: only counted."""
        if isinstance(error, LostBlock):
            self.count(lost=1)
            self._trace.event("store.lost", tier=tier.name, key=key, reason=str(error))
            return
        self.count(corrupt=1)
        self._trace.event("store.corrupt", tier=tier.name, key=key, reason=str(error))
        with self.survived(tier):
            tier.quarantine(key)

    @contextmanager
    def survived(self, tier: Tier) -> Iterator[None]:
        """Inside, a StoreError of the tier is counted and goes no further."""
        try:
            yield
        except StoreError as error:
            self.failed(tier, error)
