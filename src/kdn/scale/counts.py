"""What a connector did, as counters that an engine's own statistics can carry."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping

__all__ = ["METRICS", "TransferCounts"]

METRICS: Mapping[str, str] = {
    "lookups": "Requests that were looked up in the store.",
    "lookup_tokens": "Tokens of the prompts that were looked up.",
    "hit_tokens": "Tokens that the engine was told to load.",
    "loads": "Loads that were started.",
    "loaded_tokens": "Tokens that came and passed their checksums.",
    "failed_loads": "Loads of which a part did not come.",
    "failed_tokens": "Tokens that did not come, and are computed.",
    "cancelled_loads": "Loads that were given up with their request.",
    "load_microseconds": "Time from the start of loads to their end.",
    "saved_blocks": "Blocks that were handed to the store.",
    "saved_tokens": "Tokens of these blocks.",
    "dropped_blocks": "Blocks that were not stored, since too much waited or the store failed.",
    "unnamed_requests": "Requests whose KV cannot be named, and so is neither loaded nor stored.",
}
"""Every counter, with what it counts."""


class TransferCounts:
    """Counters since the last `take`. Safe from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._new: Counter[str] = Counter()
        self._all: Counter[str] = Counter()

    def add(self, **counts: int) -> None:
        """Add to counters of `METRICS`."""
        assert counts.keys() <= METRICS.keys()
        with self._lock:
            self._new.update(counts)
            self._all.update(counts)

    def take(self) -> dict[str, int]:
        """What came on top since the last call; empty when nothing did."""
        with self._lock:
            taken, self._new = dict(self._new), Counter()
        return {name: count for name, count in taken.items() if count}

    def total(self) -> dict[str, int]:
        """Everything since the start."""
        with self._lock:
            return {name: self._all[name] for name in METRICS}
