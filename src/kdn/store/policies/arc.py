"""ARC: two queues, once used and used again, whose sizes follow the misses of their ghosts.

Megiddo, Modha: ARC, a self-tuning, low overhead replacement cache (FAST 2003), figure 4, counted in
blocks: the room is as many blocks as are here when one must go.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from kdn.core import BlockKey
from kdn.store.policies.policy import EvictionPolicy, Use

__all__ = ["Arc"]

_Queue = OrderedDict[BlockKey, None]


class Arc(EvictionPolicy):
    """Recency and frequency in the proportion that lately would have hit more."""

    name = "arc"

    def __init__(self) -> None:
        self._once: _Queue = OrderedDict()
        self._again: _Queue = OrderedDict()
        self._once_ghosts: _Queue = OrderedDict()
        self._again_ghosts: _Queue = OrderedDict()
        self._target = 0.0
        """How many blocks the once-used queue should have (p in the paper)."""

    def insert(self, use: Use) -> None:
        key = use.key
        if key in self._once_ghosts:
            step = max(1.0, len(self._again_ghosts) / len(self._once_ghosts))
            self._target = min(self._target + step, float(len(self)))
            del self._once_ghosts[key]
            self._again[key] = None
        elif key in self._again_ghosts:
            step = max(1.0, len(self._once_ghosts) / len(self._again_ghosts))
            self._target = max(self._target - step, 0.0)
            del self._again_ghosts[key]
            self._again[key] = None
        else:
            self._once[key] = None

    def use(self, use: Use) -> None:
        self._once.pop(use.key, None)
        self._again[use.key] = None
        self._again.move_to_end(use.key)

    def remove(self, key: BlockKey) -> None:
        if key in self._once:
            del self._once[key]
            self._once_ghosts[key] = None
        elif key in self._again:
            del self._again[key]
            self._again_ghosts[key] = None
        room = len(self) + 1
        while self._once_ghosts and len(self._once) + len(self._once_ghosts) > room:
            self._once_ghosts.popitem(last=False)
        while self._again_ghosts and len(self._once_ghosts) + len(self._again_ghosts) > room:
            self._again_ghosts.popitem(last=False)

    def victims(self, now_s: float) -> Iterator[BlockKey]:
        first, then = self._once, self._again
        if len(self._once) <= self._target and self._again:
            first, then = self._again, self._once
        yield from first
        yield from then

    def __len__(self) -> int:
        return len(self._once) + len(self._again)
