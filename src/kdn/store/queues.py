"""Blocks that wait to be written: a queue for the tiers of this machine, and one for each far tier.

A block that is dropped meanwhile is not written, neither from a queue nor by a caller that carries it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from kdn.core import BlockKey
from kdn.machine.memory import make_ready
from kdn.machine.threads import Task, WriteBehind
from kdn.store.tiers.tier import Tier

__all__ = ["WriteQueues"]


class _Write:
    """A block's write to one tier, from when it is asked for until it is done or forgotten."""

    def __init__(self) -> None:
        self.running = threading.Lock()
        self.is_wanted = True

    def do(self, task: Callable[[], bool]) -> bool:
        """What `task` returns; False, and nothing is done, where the block was dropped meanwhile."""
        with self.running:
            return self.is_wanted and task()


class WriteQueues:
    """One queue for the tiers of this machine and one for each far tier, `capacity_bytes` each.

    Remembers which blocks wait for which tiers, so that one that is dropped meanwhile is not written.
    """

    def __init__(self, far: Sequence[Tier], capacity_bytes: int) -> None:
        self._local = WriteBehind(capacity_bytes)
        self._far = {tier.name: WriteBehind(capacity_bytes) for tier in far}
        self._lock = threading.Lock()
        self._waiting: dict[BlockKey, dict[str, _Write]] = {}
        self._dropping: Counter[BlockKey | None] = Counter()
        self._makes_ready = False

    def give_way(self, may_work: Callable[[], bool]) -> None:
        """While `may_work` says no, let blocks wait to be written until half of a queue is full."""
        for queue in self._all():
            queue.may_work = may_work

    @property
    def size_bytes(self) -> int:
        """Bytes that wait to be written."""
        return sum(queue.size_bytes for queue in self._all())

    def later(self, size_bytes: int, task: Task) -> bool:
        """Do something on this machine when there is time; False when too much waits already."""
        return self._local.offer(size_bytes, task)

    def make_ready(self, size_bytes: int) -> None:
        """Make memory for blocks to come when there is time."""
        if not self._makes_ready:
            self._makes_ready = self.later(0, partial(self._make_ready, size_bytes))

    def _make_ready(self, size_bytes: int) -> None:
        self._makes_ready = False
        make_ready(size_bytes, self._local.has_time)

    def add(self, tier: Tier, key: BlockKey, size_bytes: int, task: Task) -> bool:
        """Have `task` write a block to `tier` when there is time, unless `forget` comes before.

        Once for a tier, however often it is asked for.  False when too much waits already.
        """
        write = _Write()
        with self._lock:
            if self._waiting.setdefault(key, {}).setdefault(tier.name, write) is not write:
                return True
        queue = self._far.get(tier.name, self._local)
        if queue.offer(size_bytes, partial(self._do, tier.name, key, write, task)):
            return True
        self._done(tier.name, key, write)
        return False

    def waits(self, tier: Tier, key: BlockKey) -> bool:
        """Is the block still to be written to that tier?"""
        return tier.name in self._waiting.get(key, ())

    def forget(self, key: BlockKey) -> None:
        """The block is not to be written. A write of it that has begun is waited for.

        What is asked for afterwards is done.
        """
        while True:  # a write that ends may have asked for others
            with self._lock:
                writes = self._waiting.pop(key, {})
            if not writes:
                return
            for write in writes.values():
                with write.running:
                    write.is_wanted = False

    @contextmanager
    def carrying(self, key: BlockKey) -> Iterator[_Write]:
        """For a caller that reads a block and then writes it itself, by `do`: a drop since this began,
        or one that is under way, takes the block away from it."""
        write = _Write()
        own_name = f"caller {id(write)}"
        with self._lock:
            write.is_wanted = not (self._dropping[key] or self._dropping[None])
            self._waiting.setdefault(key, {})[own_name] = write
        try:
            yield write
        finally:
            self._done(own_name, key, write)

    @contextmanager
    def dropping(self, key: BlockKey | None) -> Iterator[None]:
        """While a block, or all (None), leave one tier after another: nobody carries it between them."""
        with self._lock:
            self._dropping[key] += 1
        try:
            yield
        finally:
            with self._lock:
                self._dropping[key] -= 1
                if not self._dropping[key]:
                    del self._dropping[key]

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait for all that waits; False when a queue took longer than `timeout_s`."""
        done = [queue.flush(timeout_s) for queue in self._all()]
        return all(done)

    def cancel_all(self) -> None:
        """Give up what has not begun, and wait for what has."""
        for queue in self._all():
            queue.cancel()
            queue.flush()
        for key in list(self._waiting):
            self.forget(key)

    def _do(self, tier: str, key: BlockKey, write: _Write, task: Task) -> None:
        with write.running:
            try:
                if write.is_wanted:
                    task()
            finally:
                self._done(tier, key, write)

    def _done(self, tier: str, key: BlockKey, write: _Write) -> None:
        with self._lock:
            writes = self._waiting.get(key, {})
            if writes.get(tier) is write:  # else it was forgotten, and may be waited for again
                del writes[tier]
                if not writes:
                    del self._waiting[key]

    def _all(self) -> list[WriteBehind]:
        return [self._local, *self._far.values()]
