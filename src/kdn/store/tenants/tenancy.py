"""Putting a block into one tier, at the cost of its own tenant's blocks and of none that is in use."""

from __future__ import annotations

import threading

from kdn.core import BlockKey
from kdn.store.block.format import EncodedBlock
from kdn.store.tenants.limits import TenantsLimits
from kdn.store.tenants.pins import Pins
from kdn.store.tenants.quotas import Quotas, over_quota
from kdn.store.tenants.shared_pins import PersistentPins
from kdn.store.tiers.tier import Tier
from kdn.trace import Trace

__all__ = ["Tenancy"]


class Tenancy:
    """Who may hold how much in any one tier, and which blocks may not go. Safe from several threads."""

    def __init__(
        self,
        quotas: Quotas,
        limits: TenantsLimits,
        pins: Pins,
        persistent_pins: PersistentPins,
        trace: Trace,
    ) -> None:
        """What `limits` decides stands before the settings in `quotas`."""
        self._quotas = quotas
        self._limits = limits
        self._pins = pins
        self._persistent_pins = persistent_pins
        self._trace = trace
        self._lock = threading.Lock()

    def spares(self, key: BlockKey) -> bool:
        """Is the block being read, or pinned by whom it may concern?"""
        return key in self._pins or key in self._persistent_pins

    def quota_of(self, salt: str) -> int | None:
        """The most bytes that tenant may hold in one tier: as decided, or else as set."""
        decided = self._limits.of(salt).quota_bytes
        return self._quotas.limit(salt) if decided is None else decided

    def put_into(self, tier: Tier, block: EncodedBlock) -> None:
        """Keep a block in one tier, within its tenant's quota. Raises NoSpace, StoreError."""
        salt = block.header.id.salt
        limit = self.quota_of(salt)
        if limit is None or tier.holds(block.key):
            tier.put(block, self.spares)
            return
        with self._lock:
            held = tier.holdings(salt)
            spared = [one.key for one in held if self.spares(one.key)]
            for key in over_quota(salt, limit, block.size_bytes, held, spared):
                tier.drop(key)
                self._trace.event("store.evict", tier=tier.name, key=key, reason="quota")
            tier.put(block, self.spares)
