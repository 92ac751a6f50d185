"""The memory tier: encoded blocks in a dict, and a policy that says which go first."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from kdn.clock import Clock, SystemClock
from kdn.core import BlockKey
from kdn.errors import NoSpace
from kdn.store.block.format import EncodedBlock
from kdn.store.block.reader import BytesHandle, Handle
from kdn.store.index.index import Entry
from kdn.store.policies import EvictionPolicy, Lru, Use
from kdn.store.tiers.tier import Changes, Holding, ManagedTier, Spare, TierUsage
from kdn.trace import Trace

__all__ = ["MemoryTier"]


class MemoryTier(ManagedTier):
    """At most `capacity_bytes` of blocks. The caller of `put` has verified the block.

    A reader keeps a block's bytes alive after eviction for as long as it reads them.
    """

    name = "memory"
    trusted = True
    outlives_process = False

    def __init__(
        self,
        capacity_bytes: int,
        trace: Trace,
        policy: EvictionPolicy | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`policy` None is least recently used; it belongs to the tier from now on."""
        self._capacity_bytes = capacity_bytes
        self._trace = trace
        self._policy = Lru() if policy is None else policy  # one without blocks is false
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._blocks: dict[BlockKey, EncodedBlock] = {}
        self._size_bytes = 0
        self._tokens = 0
        self._evicted = 0
        self._added: list[Entry] = []
        self._removed: list[BlockKey] = []

    def open(self, key: BlockKey) -> Handle | None:
        with self._lock:
            block = self._blocks.get(key)
            return None if block is None else BytesHandle(block.data, block.header)

    def put(self, block: EncodedBlock, spare: Spare) -> None:
        with self._lock:
            if block.key in self._blocks:
                self._policy.use(self._use(block))
            else:
                self._insert(block, spare)

    def replace(self, block: EncodedBlock, spare: Spare) -> None:
        """Where the new form does not fit, the old one stays."""
        with self._lock:
            old = self._blocks.get(block.key)
            if old is not None:
                self._forget(block.key)
            try:
                self._insert(block, spare)
            except NoSpace:
                if old is not None:
                    self._insert(old, spare)
                raise

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
            for key in self._policy.expired(self._clock.now()):
                self._evict(key)
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
                self._policy.use(self._use(self._blocks[key]))

    def block_keys(self) -> Iterator[BlockKey]:
        with self._lock:
            first = tuple(self._policy.victims(self._clock.now()))
            pinned = self._blocks.keys() - set(first)
            return iter((*first, *pinned))

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
            assert len(self._policy) == len(self._blocks), "the policy's keys differ"
            self._policy.check()

    def close(self) -> None:
        with self._lock:
            for key in tuple(self._blocks):
                self._forget(key)

    def _use(self, block: EncodedBlock) -> Use:
        name = block.header.id
        now_s = self._clock.now()
        return Use(block.key, name.start, name.num_tokens, block.size_bytes, now_s, name.salt)

    def _insert(self, block: EncodedBlock, spare: Spare) -> None:
        use = self._use(block)
        for victim in self._victims(use, spare):
            self._evict(victim)
        self._blocks[block.key] = block
        self._size_bytes += block.size_bytes
        self._tokens += block.header.id.num_tokens
        self._added.append(Entry.of(block.header.id))
        self._policy.insert(use)

    def _victims(self, use: Use, spare: Spare) -> list[BlockKey]:
        """Which blocks go so that the block fits. Changes nothing."""
        must = self._policy.expired(use.at_s)
        victims = [key for key in must if not spare(key)]
        excess = self._size_bytes + use.size_bytes - self._capacity_bytes
        excess -= sum(self._blocks[key].size_bytes for key in victims)
        if excess > 0 and not self._policy.admits(use):
            raise NoSpace(
                f"a block of {use.size_bytes} bytes is worth less than what would have to go for it"
                f" from the memory tier of {self._capacity_bytes} bytes: give it more memory"
            )
        for key in self._policy.victims(use.at_s):
            if excess <= 0:
                break
            if key not in victims and not spare(key):
                victims.append(key)
                excess -= self._blocks[key].size_bytes
        if excess > 0:
            raise NoSpace(
                f"a block of {use.size_bytes} bytes does not fit in the memory tier of"
                f" {self._capacity_bytes} bytes beside what is in use: give it more memory"
            )
        return victims

    def _evict(self, key: BlockKey) -> None:
        self._forget(key)
        self._evicted += 1
        self._trace.event("store.evict", tier=self.name, key=key)

    def _forget(self, key: BlockKey) -> None:
        block = self._blocks.pop(key)
        self._policy.remove(key)
        self._size_bytes -= block.size_bytes
        self._tokens -= block.header.id.num_tokens
        self._removed.append(key)
