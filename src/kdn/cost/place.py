"""Where a block is worth storing, and for how long: the cost model as the store acts on it."""

from __future__ import annotations

from dataclasses import dataclass

from kdn.cost.ledger import block_saving, load_cost
from kdn.cost.sheet import PriceSheet, TierPrice
from kdn.cost.speed import Speed
from kdn.cost.units import Seconds, SizeBytes

__all__ = ["Placing"]


@dataclass(frozen=True)
class Placing:
    """Decides tier by tier. A tier without a price costs nothing that is known: all may go there."""

    speed: Speed
    sheet: PriceSheet

    def pays(self, tier: str, start: int, num_tokens: int, size_bytes: int) -> bool:
        """Does one later use save more than writing the block there and loading it once?"""
        price = self.sheet.tiers.get(tier)
        if price is None:
            return True
        written = price.write.cost(SizeBytes(size_bytes)) + price.put.cost(1)
        return self._use_saves(price, start, num_tokens, size_bytes) > written.value

    def keep_for_s(self, tier: str, start: int, num_tokens: int, size_bytes: int) -> float | None:
        """Until storage since the last use has cost what one more use would save (ski rental).

        That costs at most twice what knowing the future would.  None is for ever: storage is free.
        """
        price = self.sheet.tiers.get(tier)
        second = 0.0 if price is None else self._storage(price, size_bytes)
        if price is None or second == 0:
            return None
        return max(0.0, self._use_saves(price, start, num_tokens, size_bytes)) / second

    def _use_saves(self, price: TierPrice, start: int, num_tokens: int, size_bytes: int) -> float:
        """Dollars of prefill that a use saves, less what bringing the block in costs."""
        spent = load_cost(self.sheet, price, SizeBytes(size_bytes))
        return block_saving(self.speed, self.sheet, start, num_tokens).value - spent.value

    @staticmethod
    def _storage(price: TierPrice, size_bytes: int) -> float:
        """Dollars a second."""
        return price.storage.cost(SizeBytes(size_bytes), Seconds(1.0)).value
