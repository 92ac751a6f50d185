"""Putting a block into one tier, at the cost of its own tenant's blocks and of none that is in use."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from kdn.core import BlockKey
from kdn.errors import NoSpace
from kdn.store.block.format import EncodedBlock
from kdn.store.tenants.decisions import PersistentPins, TenantsLimits
from kdn.store.tiers.tier import Holding, ManagedTier
from kdn.trace import Trace

__all__ = ["Pins", "Quotas", "Tenancy", "over_quota"]


@dataclass(frozen=True)
class Quotas:
    """Bytes by salt; `default_bytes` holds for those not named. None is no limit."""

    default_bytes: int | None = None
    by_salt: Mapping[str, int] = field(default_factory=dict)

    def limit(self, salt: str) -> int | None:
        """The most bytes that tenant may hold in one tier."""
        return self.by_salt.get(salt, self.default_bytes)

    def __bool__(self) -> bool:
        return self.default_bytes is not None or bool(self.by_salt)


class Pins:
    """Counts, per key, how many readers hold it. Safe from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[BlockKey] = Counter()

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._counts

    def hold(self, key: BlockKey) -> None:
        with self._lock:
            self._counts[key] += 1

    def release(self, key: BlockKey) -> None:
        with self._lock:
            assert self._counts[key] > 0, f"{key} was released more often than held"
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key]

    @contextmanager
    def held(self, keys: Iterable[BlockKey]) -> Iterator[None]:
        """Hold `keys` until the block is left."""
        wanted = tuple(keys)
        for key in wanted:
            self.hold(key)
        try:
            yield
        finally:
            for key in wanted:
                self.release(key)


class Tenancy:
    """Who may hold how much in any one tier, and which blocks may not go. Safe from several threads."""

    def __init__(
        self, quotas: Quotas, limits: TenantsLimits, persistent_pins: PersistentPins, trace: Trace
    ) -> None:
        """What `limits` decides stands before the settings in `quotas`."""
        self.quotas = quotas
        self.limits = limits
        self.pins = Pins()
        """Blocks that this process reads just now."""
        self.persistent_pins = persistent_pins
        self._trace = trace
        self._lock = threading.Lock()

    def spares(self, key: BlockKey) -> bool:
        """Is the block being read, or pinned?"""
        return key in self.pins or key in self.persistent_pins

    def quota_of(self, salt: str) -> int | None:
        """The most bytes that tenant may hold in one tier: as decided, or else as set."""
        decided = self.limits.of(salt).quota_bytes
        return self.quotas.limit(salt) if decided is None else decided

    def put_into(self, tier: ManagedTier, block: EncodedBlock) -> None:
        """Store a block in one tier, within its tenant's quota. Raises NoSpace, StoreError."""
        salt = block.header.id.salt
        limit = self.quota_of(salt)
        if limit is None or tier.holds(block.key):
            tier.put(block, self.spares)
            return
        with self._lock:
            held = tier.holdings(salt)
            spared = {one.key for one in held if self.spares(one.key)}
            for key in over_quota(salt, limit, block.size_bytes, held, spared):
                tier.drop(key)
                self._trace.event("store.evict", tier=tier.name, key=key, reason="quota")
            tier.put(block, self.spares)


def over_quota(
    salt: str, limit: int, size_bytes: int, held: Sequence[Holding], spared: set[BlockKey]
) -> list[BlockKey]:
    """Which of the tenant's own blocks (oldest use first) go, so that `size_bytes` more fit.

    A tenant pays with its own blocks only.  Raises NoSpace when even that is not enough.
    """
    excess = sum(one.size_bytes for one in held) + size_bytes - limit
    going = []
    for one in held:
        if excess <= 0:
            break
        if one.key not in spared:
            going.append(one.key)
            excess -= one.size_bytes
    if excess > 0:
        raise NoSpace(
            f"a block of {size_bytes} bytes does not fit in the quota of {limit} bytes that tenant"
            f" {salt!r} has, beside what is in use or pinned: raise the quota, or unpin"
        )
    return going
