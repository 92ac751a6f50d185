"""Queues of what is to be written: bounded in bytes, and served by threads that give way to other work.

    WriteQueues
      ├─ WriteBehind              the tiers of this machine
      └─ WriteBehind of tier T    one for each far tier

Nothing here is durable: what must be is written by its caller's own thread (`Writer.put`).
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from kdn.core import BlockKey
from kdn.store.tiers.tier import Tier

__all__ = ["Task", "WriteBehind", "WriteQueues"]

Task = Callable[[], object]
_LOOK_AGAIN_S = 0.05
"""How often a queue that gives way looks whether it may go on."""
_log = logging.getLogger(__name__)


class WriteBehind:
    """Runs tasks one after another in a thread of its own, as long as what waits stays bounded.

    The thread gives way while `may_work` says no: until half of the bytes wait that may, or somebody waits
    for the end.

    A task handles its own errors.  One that raises all the same costs itself only: another
    thread goes on with the rest.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._moved = threading.Condition()
        self._waiting: deque[tuple[int, Task]] = deque()
        self._size_bytes = 0
        self._num_flushing = 0
        self._thread: threading.Thread | None = None
        self.may_work: Callable[[], bool] = lambda: True
        """False while something else needs the processors more. Asked under a lock: it waits for nothing."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the tasks that are not done."""
        return self._size_bytes

    def offer(self, size_bytes: int, task: Task) -> bool:
        """Take a task; False when too much waits already."""
        with self._moved:
            if self._size_bytes + size_bytes > self._capacity_bytes:
                return False
            self._waiting.append((size_bytes, task))
            self._size_bytes += size_bytes
            if self._thread is None:
                self._start()
            return True

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing is left to do; False when that took longer than `timeout_s`."""
        with self._moved:
            self._num_flushing += 1
            self._moved.notify_all()
            try:
                return self._moved.wait_for(lambda: self._thread is None, timeout_s)
            finally:
                self._num_flushing -= 1

    def cancel(self) -> int:
        """Drop the tasks that have not begun; returns how many."""
        with self._moved:
            dropped = len(self._waiting)
            self._size_bytes -= sum(size for size, _ in self._waiting)
            self._waiting.clear()
            self._moved.notify_all()
            return dropped

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._work, name="kdn-store", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        """Do what waits, then end: a thread that has nothing to do does not exist."""
        task = self._next()
        while task is not None:
            size_bytes, run = task
            try:
                run()
            except BaseException:
                self._give_up(size_bytes)
                raise
            with self._moved:
                self._size_bytes -= size_bytes
            task = self._next()

    def _next(self) -> tuple[int, Task] | None:
        with self._moved:
            while self._gives_way():
                self._moved.wait(_LOOK_AGAIN_S)
            if self._waiting:
                return self._waiting.popleft()
            self._thread = None
            self._moved.notify_all()
            return None

    def _gives_way(self) -> bool:
        has_room = 2 * self._size_bytes <= self._capacity_bytes
        return bool(self._waiting) and has_room and not (self._num_flushing or self._may_work())

    def _may_work(self) -> bool:
        """Work is never left undone because nobody can say whether it may be done."""
        try:
            return self.may_work()
        except Exception:  # noqa: BLE001  it may fail in any way
            _log.exception("whether to give way cannot be told; writing goes on")
            return True

    def _give_up(self, size_bytes: int) -> None:
        with self._moved:
            self._size_bytes -= size_bytes
            self._thread = None
            if self._waiting:
                self._start()
            self._moved.notify_all()


class WriteQueues:
    """One queue for the tiers of this machine and one for each far tier, `capacity_bytes` each.

    Remembers which blocks wait for the durable tier, so that one that is dropped meanwhile is not written.
    """

    def __init__(self, far: Sequence[Tier], capacity_bytes: int) -> None:
        self._local = WriteBehind(capacity_bytes)
        self._far = {tier.name: WriteBehind(capacity_bytes) for tier in far}
        self._lock = threading.Lock()
        self._waiting: set[BlockKey] = set()

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

    def to_far(self, tier: Tier, size_bytes: int, task: Task) -> bool:
        """The same in the queue of a far tier."""
        return self._far[tier.name].offer(size_bytes, task)

    def add(self, key: BlockKey, size_bytes: int, task: Task) -> bool:
        """As `later`, for a block that waits from now on until `forget`."""
        with self._lock:
            self._waiting.add(key)
        if self.later(size_bytes, task):
            return True
        self.forget(key)
        return False

    def waits(self, key: BlockKey) -> bool:
        """Is the block still to be written?"""
        return key in self._waiting

    def forget(self, key: BlockKey) -> None:
        """The block waits no more: it is written, or is not to be."""
        with self._lock:
            self._waiting.discard(key)

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait for all that waits; False when a queue took longer than `timeout_s`."""
        done = [queue.flush(timeout_s) for queue in self._all()]
        return all(done)

    def cancel_all(self) -> None:
        """Give up what has not begun, and wait for what has."""
        for queue in self._all():
            queue.cancel()
            queue.flush()
        with self._lock:
            self._waiting.clear()

    def _all(self) -> list[WriteBehind]:
        return [self._local, *self._far.values()]
