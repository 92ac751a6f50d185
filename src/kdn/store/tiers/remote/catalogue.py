"""What is known of the blocks in a remote, in memory: entries and sizes, least recently used first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable

from kdn.core import BlockKey
from kdn.errors import NoSpace
from kdn.store.index.index import Entry
from kdn.store.tiers.tier import Changes, Holding, Spare, TierUsage

__all__ = ["RemoteCatalogue"]


class RemoteCatalogue:
    """Entries by key, and what changed since it was last asked. Safe from several threads."""

    def __init__(self, name: str, capacity_bytes: int | None) -> None:
        """`name` is the tier's, for messages; `capacity_bytes` None is no cap."""
        self._name = name
        self._capacity_bytes = capacity_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[BlockKey, tuple[Entry, int]] = OrderedDict()
        self._size_bytes = 0
        self._tokens = 0
        self._added: list[Entry] = []
        self._removed: list[BlockKey] = []
        self._fresh: set[BlockKey] = set()
        """Added since the last listing began: it may not have seen them."""

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._entries

    def keys(self) -> tuple[BlockKey, ...]:
        """Every key, least recently used first."""
        with self._lock:
            return tuple(self._entries)

    def add(self, entry: Entry, size_bytes: int) -> None:
        """The block is there, and takes so much room."""
        with self._lock:
            self._remove(entry.key)
            self._entries[entry.key] = (entry, size_bytes)
            self._size_bytes += size_bytes
            self._tokens += entry.num_tokens
            self._added.append(entry)
            self._fresh.add(entry.key)

    def remove(self, key: BlockKey) -> bool:
        """The block is there no more; False when it was not known."""
        with self._lock:
            return self._remove(key)

    def begin_listing(self) -> None:
        """The remote is asked now: what is added from here on may miss from what it says."""
        with self._lock:
            self._fresh.clear()

    def retain(self, keys: Iterable[BlockKey]) -> None:
        """No other blocks than these were there when the listing began."""
        listed = set(keys)
        with self._lock:
            listed |= self._fresh
            for key in [key for key in self._entries if key not in listed]:
                self._remove(key)

    def touch(self, key: BlockKey) -> None:
        """The block was used."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)

    def changes(self) -> Changes:
        """What came and went since the last call."""
        with self._lock:
            changes = Changes(tuple(self._added), tuple(self._removed))
            self._added.clear()
            self._removed.clear()
        return changes

    def usage(self, evicted: int) -> TierUsage:
        """How much is there."""
        with self._lock:
            return TierUsage(
                len(self._entries), self._tokens, self._size_bytes, self._capacity_bytes, evicted
            )

    def holdings(self, salt: str) -> list[Holding]:
        """A tenant's blocks, least recently used first."""
        with self._lock:
            return [
                Holding(key, size_bytes)
                for key, (entry, size_bytes) in self._entries.items()
                if entry.family.salt == salt
            ]

    def victims(self, size_bytes: int, spare: Spare) -> list[BlockKey]:
        """Which blocks go so that `size_bytes` more fit under the cap. Raises NoSpace.

        Blocks of unknown size stay: dropping one makes no room that is counted.
        """
        if self._capacity_bytes is None:
            return []
        with self._lock:
            excess = self._size_bytes + size_bytes - self._capacity_bytes
            victims = []
            for key, (_, held_bytes) in self._entries.items():
                if excess <= 0:
                    break
                if held_bytes and not spare(key):
                    victims.append(key)
                    excess -= held_bytes
        if excess > 0:
            raise NoSpace(
                f"a block of {size_bytes} bytes does not fit under the {self._capacity_bytes} bytes"
                f" allowed in {self._name} beside what is in use: allow more"
            )
        return victims

    def check(self) -> None:
        """Audit the sums. Raises AssertionError saying what does not add up."""
        with self._lock:
            sizes = sum(size for _, size in self._entries.values())
            assert sizes == self._size_bytes, f"{self._name}: {sizes} bytes, not {self._size_bytes}"
            tokens = sum(entry.num_tokens for entry, _ in self._entries.values())
            assert tokens == self._tokens, f"{self._name}: {tokens} tokens, not {self._tokens}"

    def _remove(self, key: BlockKey) -> bool:
        found = self._entries.pop(key, None)
        if found is None:
            return False
        self._size_bytes -= found[1]
        self._tokens -= found[0].num_tokens
        self._removed.append(key)
        return True
