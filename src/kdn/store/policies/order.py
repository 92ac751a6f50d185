"""First in first out, the dull twin of all policies, and least recently used, the default."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from kdn.core import BlockKey
from kdn.store.policies.policy import EvictionPolicy, Use

__all__ = ["Fifo", "Lru"]


class Fifo(EvictionPolicy):
    """Whoever came first goes first, used or not."""

    name = "fifo"

    def __init__(self) -> None:
        self._order: OrderedDict[BlockKey, None] = OrderedDict()

    def insert(self, use: Use) -> None:
        self._order[use.key] = None

    def use(self, use: Use) -> None:
        return

    def remove(self, key: BlockKey) -> None:
        self._order.pop(key, None)

    def victims(self, now_s: float) -> Iterator[BlockKey]:
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._order)


class Lru(Fifo):
    """Whoever was not used for longest goes first."""

    name = "lru"

    def use(self, use: Use) -> None:
        self._order.move_to_end(use.key)
