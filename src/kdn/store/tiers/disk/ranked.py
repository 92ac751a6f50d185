"""A policy beside the shared catalogue: what this process knows of which blocks should go first."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace

from kdn.clock import Clock
from kdn.core import BlockKey
from kdn.store.policies import EvictionPolicy, Use

__all__ = ["RankedBlocks"]


class RankedBlocks:
    """Feeds a policy from several threads, and asks it.

    Other processes on the folder have policies of their own; each ranks what it has seen, and the
    catalogue falls back on age for the others.
    """

    def __init__(self, policy: EvictionPolicy, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[BlockKey, Use] = {}

    def learn(self, rows: Iterable[tuple[Use, float]]) -> None:
        """Blocks that are here already, each with the wall time of its last use, oldest first."""
        now_s, wall_s = self._clock.now(), self._clock.wall()
        with self._lock:
            for use, used_s in rows:
                if use.key not in self._known:
                    self._insert(replace(use, at_s=now_s - max(0.0, wall_s - used_s)))

    def insert(self, use: Use) -> None:
        """The block came in, by this process's hand."""
        with self._lock:
            self._insert(replace(use, at_s=self._clock.now()))

    def touch(self, key: BlockKey) -> None:
        """The block was used; one that is not known is passed over."""
        with self._lock:
            use = self._known.get(key)
            if use is not None:
                self._policy.use(replace(use, at_s=self._clock.now()))

    def forget(self, key: BlockKey) -> None:
        """The block left, by any process."""
        with self._lock:
            if self._known.pop(key, None) is not None:
                self._policy.remove(key)

    def admits(self, use: Use) -> bool:
        """Is the block worth evicting others for?"""
        with self._lock:
            return self._policy.admits(replace(use, at_s=self._clock.now()))

    def expired(self) -> list[BlockKey]:
        """Blocks that have to go whatever room there is."""
        with self._lock:
            return self._policy.expired(self._clock.now())

    def victims(self) -> list[BlockKey]:
        """All that is known and may go, the first to go in front."""
        with self._lock:
            return list(self._policy.victims(self._clock.now()))

    def unknown(self, keys: Iterable[BlockKey]) -> set[BlockKey]:
        """Those the policy has not been told of."""
        with self._lock:
            return {key for key in keys if key not in self._known}

    def check(self) -> None:
        """Audit what is known. Raises AssertionError saying what does not add up."""
        with self._lock:
            assert len(self._policy) == len(self._known), "the policy's keys differ"
            self._policy.check()

    def _insert(self, use: Use) -> None:
        if use.key in self._known:
            self._policy.use(use)
        else:
            self._known[use.key] = use
            self._policy.insert(use)
