"""What went wrong and was survived: counted, and told to the trace."""

from __future__ import annotations

from kdn.core import BlockKey
from kdn.errors import StoreError
from kdn.store.stat import Counts
from kdn.store.tiers.tier import Tier
from kdn.trace import Trace

__all__ = ["Failures"]


class Failures:
    """Nothing here raises: whoever calls goes on with a miss, or with a block that is not kept."""

    def __init__(self, counts: Counts, trace: Trace) -> None:
        self._counts = counts
        self._trace = trace

    def dropped(self, key: BlockKey, where: str, reason: str) -> None:
        """A block found no room in a tier or in the queue to it."""
        self._counts.add(dropped=1)
        self._trace.event("store.refuse", tier=where, key=key, reason=reason)

    def failed(self, tier: Tier, error: StoreError) -> None:
        """A tier could not be used."""
        self._counts.add(failed=1)
        self._trace.event("store.failed", tier=tier.name, reason=str(error))
