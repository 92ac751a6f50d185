"""The memory tier: encoded blocks in a dict, least recently used first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from kdn.core import BlockKey
from kdn.errors import NoSpace
from kdn.store.format import EncodedBlock
from kdn.store.index import Entry
from kdn.store.quotas import Holding
from kdn.store.tier import Changes, Handle, Spare, Tier, TierUsage
from kdn.trace import Trace

__all__ = ["MemoryTier"]


class _Held(Handle):
    """A block in memory: nothing to fetch, nothing to give back."""

    def __init__(self, block: EncodedBlock) -> None:
        self.buffer = block.data
        self.header = block.header

    def read(self, start: int, stop: int) -> memoryview:
        return self.buffer[start:stop]

    def close(self) -> None:
        return


class MemoryTier(Tier):
    """At most `capacity_bytes` of blocks. Whoever puts a block has verified it.

    A reader keeps a block's bytes alive after eviction for as long as it reads them.
    """

    name = "memory"
    trusted = True

    def __init__(self, capacity_bytes: int, trace: Trace) -> None:
        self._capacity_bytes = capacity_bytes
        self._trace = trace
        self._lock = threading.Lock()
        self._blocks: OrderedDict[BlockKey, EncodedBlock] = OrderedDict()
        self._size_bytes = 0
        self._tokens = 0
        self._evicted = 0
        self._added: list[Entry] = []
        self._removed: list[BlockKey] = []

    def open(self, key: BlockKey) -> Handle | None:
        with self._lock:
            block = self._blocks.get(key)
            return None if block is None else _Held(block)

    def put(self, block: EncodedBlock, spare: Spare) -> None:
        with self._lock:
            if block.key in self._blocks:
                self._blocks.move_to_end(block.key)
                return
            for victim in self._victims(block.size_bytes, spare):
                self._forget(victim)
                self._evicted += 1
                self._trace.event("store.evict", tier=self.name, key=victim)
            self._blocks[block.key] = block
            self._size_bytes += block.size_bytes
            self._tokens += block.header.id.num_tokens
            self._added.append(Entry.of(block.header.id))

    def drop(self, key: BlockKey) -> bool:
        with self._lock:
            if key not in self._blocks:
                return False
            self._forget(key)
            return True

    def holds(self, key: BlockKey) -> bool:
        return key in self._blocks

    def changes(self) -> Changes:
        with self._lock:
            changes = Changes(tuple(self._added), tuple(self._removed))
            self._added.clear()
            self._removed.clear()
        return changes

    def usage(self) -> TierUsage:
        with self._lock:
            return TierUsage(
                len(self._blocks),
                self._tokens,
                self._size_bytes,
                self._capacity_bytes,
                self._evicted,
            )

    def touch(self, key: BlockKey) -> None:
        with self._lock:
            if key in self._blocks:
                self._blocks.move_to_end(key)

    def kept(self) -> Iterator[BlockKey]:
        with self._lock:
            return iter(tuple(self._blocks))

    def holdings(self, salt: str) -> Sequence[Holding]:
        with self._lock:
            blocks = [b for b in self._blocks.values() if b.header.id.salt == salt]
        return [Holding(block.key, block.size_bytes) for block in blocks]

    def check(self) -> None:
        with self._lock:
            blocks = self._blocks.values()
            assert self._size_bytes == sum(block.size_bytes for block in blocks), "bytes differ"
            assert self._tokens == sum(b.header.id.num_tokens for b in blocks), "tokens differ"
            assert self._size_bytes <= self._capacity_bytes, "over the cap"

    def close(self) -> None:
        with self._lock:
            for key in tuple(self._blocks):
                self._forget(key)

    def _victims(self, size_bytes: int, spare: Spare) -> list[BlockKey]:
        """Who must go so that `size_bytes` fit, oldest use first. Changes nothing."""
        excess = self._size_bytes + size_bytes - self._capacity_bytes
        victims = []
        for key, block in self._blocks.items():
            if excess <= 0:
                break
            if not spare(key):
                victims.append(key)
                excess -= block.size_bytes
        if excess > 0:
            raise NoSpace(
                f"a block of {size_bytes} bytes does not fit in the memory tier of"
                f" {self._capacity_bytes} bytes beside what is in use: give it more memory"
            )
        return victims

    def _forget(self, key: BlockKey) -> None:
        block = self._blocks.pop(key)
        self._size_bytes -= block.size_bytes
        self._tokens -= block.header.id.num_tokens
        self._removed.append(key)
