"""Writes to a remote, which may go on after their callers gave up: what is dropped meanwhile goes again."""

from __future__ import annotations

import threading
from collections import Counter

from kdn.core import BlockKey
from kdn.store.tiers.remote.client import Remote

__all__ = ["Uploads"]


class Uploads:
    """The writes to `remote` that are under way in this process. Safe from several threads."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._lock = threading.Lock()
        self._running: Counter[BlockKey] = Counter()
        self._dropped: set[BlockKey] = set()
        """Of those that run: dropped after they began, and not asked for since."""

    def keys(self) -> list[BlockKey]:
        """The blocks of which a write is under way."""
        with self._lock:
            return list(self._running)

    def want(self, key: BlockKey) -> None:
        """The block is to be there, though it was dropped before."""
        with self._lock:
            self._dropped.discard(key)

    def drop(self, key: BlockKey) -> None:
        """The block is not to be there; to be called before it is removed."""
        with self._lock:
            if key in self._running:
                self._dropped.add(key)

    def write(self, key: BlockKey, note: bytes, data: memoryview) -> None:
        """Write the block, and remove it if it was dropped meanwhile. Raises what the remote raises."""
        with self._lock:
            self._running[key] += 1
        try:
            self._remote.write(key, note, data)
        finally:
            if self._ended(key):
                self._remote.remove(key)

    def _ended(self, key: BlockKey) -> bool:
        """A write has ended: was the block dropped meanwhile?"""
        with self._lock:
            is_dropped = key in self._dropped
            self._running[key] -= 1
            if not self._running[key]:
                del self._running[key]
                self._dropped.discard(key)
            return is_dropped
