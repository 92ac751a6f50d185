"""S3-FIFO: a small queue on probation in front of the main one.

Yang, Zhang, Qiu, Yue, Rashmi: FIFO queues are all you need for cache eviction (SOSP 2023),
algorithm 1: a tenth of the room is the small queue, two bits count uses, a ghost queue remembers
keys that left the small queue and did not go to the main one, as many as that has blocks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from kdn.core import BlockKey
from kdn.store.policies.policy import EvictionPolicy, Use

__all__ = ["S3Fifo"]

_MOST_USES = 3
_SMALL_SHARE = 0.1
"""The share of the bytes that is the aim for the small queue."""


class S3Fifo(EvictionPolicy):
    """Blocks used once or never while on probation leave early; what comes back goes to the main
    queue, where each use buys one more round."""

    name = "s3fifo"

    def __init__(self) -> None:
        self._small: OrderedDict[BlockKey, int] = OrderedDict()
        self._main: OrderedDict[BlockKey, int] = OrderedDict()
        self._ghosts: OrderedDict[BlockKey, None] = OrderedDict()
        self._uses: dict[BlockKey, int] = {}
        self._small_bytes = 0
        self._bytes = 0

    def insert(self, use: Use) -> None:
        self._uses[use.key] = 0
        self._bytes += use.size_bytes
        if use.key in self._ghosts:
            del self._ghosts[use.key]
            self._main[use.key] = use.size_bytes
        else:
            self._small[use.key] = use.size_bytes
            self._small_bytes += use.size_bytes

    def use(self, use: Use) -> None:
        self._uses[use.key] = min(_MOST_USES, self._uses[use.key] + 1)

    def remove(self, key: BlockKey) -> None:
        if key in self._small:
            self._leave_small(key)
            self._remember(key)
        elif key in self._main:
            self._bytes -= self._main.pop(key)
        self._uses.pop(key, None)

    def victims(self, now_s: float) -> Iterator[BlockKey]:
        """The first is the algorithm's choice; those after it follow in the queues' order."""
        first = self._choose()
        if first is None:
            return
        yield first
        for queue in (self._small, self._main):
            yield from (key for key in queue if key != first)

    def __len__(self) -> int:
        return len(self._uses)

    def check(self) -> None:
        super().check()
        assert self._small_bytes == sum(self._small.values()), "small bytes differ"
        assert self._bytes == self._small_bytes + sum(self._main.values()), "bytes differ"

    def _choose(self) -> BlockKey | None:
        """Run the queues up to the next block to go. Moves only what has earned it."""
        while self._small and self._small_bytes >= _SMALL_SHARE * self._bytes:
            key = next(iter(self._small))
            if self._uses[key] <= 1:
                return key
            self._promote(key)
        while self._main:
            key = next(iter(self._main))
            if not self._uses[key]:
                return key
            self._uses[key] -= 1
            self._main.move_to_end(key)
        return next(iter(self._small), None)

    def _promote(self, key: BlockKey) -> None:
        size_bytes = self._small[key]
        self._leave_small(key)
        self._bytes += size_bytes
        self._main[key] = size_bytes
        self._uses[key] = 0

    def _leave_small(self, key: BlockKey) -> None:
        size_bytes = self._small.pop(key)
        self._small_bytes -= size_bytes
        self._bytes -= size_bytes

    def _remember(self, key: BlockKey) -> None:
        self._ghosts[key] = None
        while len(self._ghosts) > max(len(self._main), len(self._small)):
            self._ghosts.popitem(last=False)
