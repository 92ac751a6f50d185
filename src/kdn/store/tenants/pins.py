"""Which blocks may not be evicted just now."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from kdn.core import BlockKey

__all__ = ["Pins"]


class Pins:
    """Counts, per key, how many hold it. Safe from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[BlockKey] = Counter()

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._counts

    def hold(self, key: BlockKey) -> None:
        with self._lock:
            self._counts[key] += 1

    def release(self, key: BlockKey) -> None:
        with self._lock:
            assert self._counts[key] > 0, f"{key} was released more often than held"
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key]

    @contextmanager
    def held(self, keys: Iterable[BlockKey]) -> Iterator[None]:
        """Hold `keys` until the block is left."""
        wanted = tuple(keys)
        for key in wanted:
            self.hold(key)
        try:
            yield
        finally:
            for key in wanted:
                self.release(key)
