"""What a store has done and holds, in numbers."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from kdn.core import BlockKey
from kdn.store.tiers.tier import TierUsage

__all__ = ["Counts", "ScrubReport", "StoreStat"]


@dataclass(frozen=True)
class StoreStat:
    """Counts since the store was opened, and what the tiers hold now."""

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
    """Blocks that a put made durable in the last tier, now or behind."""
    put_bytes: int
    evicted: int
    """Blocks that tiers gave up for room."""
    dropped: int
    """Times a block found no room in a tier it was meant for, or in the queue to it."""
    failed: int
    """Times the store itself could not be used; each was survived as a miss or a block not kept."""
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


class Counts:
    """Counters by name. Safe from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, **amounts: int) -> None:
        with self._lock:
            self._counts.update(amounts)

    def beginning(self, prefix: str) -> dict[str, int]:
        """Those whose name begins so, by the rest of it."""
        with self._lock:
            found = sorted(name for name in self._counts if name.startswith(prefix))
            return {name.removeprefix(prefix): self._counts[name] for name in found}

    def __getitem__(self, name: str) -> int:
        return self._counts[name]
