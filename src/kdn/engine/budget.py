"""Bytes of KV, set aside before a request runs: one engine's reservations, and what several engines share.

    KvPool (one number of bytes)
      ├─ KvBudget of model A     reserve, release
      └─ KvBudget of model B     the first that was refused is served first

What is computed of prefixes and unused stays while there is room (`PrefixPool`).
Engines of one pool also take turns: two that compute at one time only take processors from each other.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from kdn.engine.kv import PrefixKV

__all__ = ["KvBudget", "KvPool", "PrefixPool", "ResidentStat"]


class KvPool:
    """One number of bytes for the KV of all engines of a process. Safe from several threads."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.free_bytes = total_bytes
        self._lock = threading.RLock()
        self._refused: list[KvBudget] = []
        """Those whose next request did not fit, first come first: nobody else goes before them."""
        self._members: list[KvBudget] = []
        self._turns = _Turns()

    def join(self, budget: KvBudget) -> None:
        """The budget takes from this pool from now on."""
        with self._lock:
            self._members.append(budget)

    def leave(self, budget: KvBudget) -> None:
        """The budget takes no more; what it holds comes back."""
        with self._lock:
            self._members = [one for one in self._members if one is not budget]
        budget.clear()
        budget.waits_no_more()

    def turn(self) -> _Turns:
        """To compute inside: engines come one after the other, in the order in which they ask."""
        return self._turns

    def take(self, budget: KvBudget, size_bytes: int) -> bool:
        """Take bytes for one of the budgets; False when they are not there, or are another's turn."""
        with self._lock:
            first = self._refused[0] if self._refused else budget
            if size_bytes > self.free_bytes or first is not budget:
                return False
            self.free_bytes -= size_bytes
            return True

    def put_back(self, budget: KvBudget, size_bytes: int) -> None:
        """Bytes of one of the budgets are free again; the others hear of it."""
        with self._lock:
            self.free_bytes += size_bytes
            others = [one for one in self._members if one is not budget]
            for one in others:
                one.num_heard += 1
        for one in others:
            one.wake()

    def note_refused(self, budget: KvBudget) -> None:
        """The budget's next request waits for bytes: it comes before what others ask for later.

        One that has left waits for nothing, or it would stand before the others for ever.
        """
        with self._lock:
            is_member = any(one is budget for one in self._members)
            if is_member and not any(one is budget for one in self._refused):
                self._refused.append(budget)

    def note_served(self, budget: KvBudget) -> None:
        """The budget waits for nothing any more."""
        with self._lock:
            waited = any(one is budget for one in self._refused)
            self._refused = [one for one in self._refused if one is not budget]
        if waited:
            self.put_back(budget, 0)


class KvBudget:
    """The bytes that one engine has reserved for KV. Reservations cover the worst case."""

    def __init__(self, pool: KvPool | int, wake: Callable[[], None] = lambda: None) -> None:
        """`pool` is what is shared with other engines, or a number of bytes of one's own; `wake` is
        called, from any thread, when others have put bytes back."""
        self._pool = pool if isinstance(pool, KvPool) else KvPool(pool)
        self._pool.join(self)
        self.wake = wake
        self._reserved: dict[str, int] = {}
        self.num_heard = 0
        """Grows, by the pool, whenever others put bytes back: what was refused may fit now."""
        self._num_seen = 0
        self._is_waiting = False

    @property
    def total_bytes(self) -> int:
        return self._pool.total_bytes

    @property
    def free_bytes(self) -> int:
        """What could be reserved now, by any of the engines."""
        return self._pool.free_bytes

    @property
    def reserved_bytes(self) -> int:
        """What this engine holds."""
        return sum(self._reserved.values())

    def reserve(self, owner: str, size_bytes: int) -> bool:
        """True when the bytes are set aside; False, and nothing changes, when they are not there."""
        assert owner not in self._reserved, f"{owner} holds a reservation already"
        if not self._pool.take(self, size_bytes):
            return False
        self._reserved[owner] = size_bytes
        return True

    def release(self, owner: str) -> None:
        """Give the owner's bytes back; nothing happens if it holds none."""
        size_bytes = self._reserved.get(owner)
        if size_bytes is not None:
            self._pool.put_back(self, size_bytes)
            del self._reserved[owner]  # after: what a fault keeps from the pool is still known

    def clear(self) -> None:
        """Give all bytes back."""
        for owner in list(self._reserved):
            self.release(owner)

    def waits(self) -> None:
        """What is to run next did not fit: other engines let it go first."""
        self._is_waiting = True
        self._pool.note_refused(self)

    def waits_no_more(self) -> None:
        """What waited has begun, or is gone."""
        if self._is_waiting:
            self._is_waiting = False
            self._pool.note_served(self)

    def has_changed(self) -> bool:
        """Have others put anything back since this was last asked? An engine knows what itself put back."""
        seen, self._num_seen = self._num_seen, self.num_heard
        return seen != self._num_seen

    def check(self) -> None:
        """Audit the accounts. Raises AssertionError."""
        assert self.free_bytes >= 0, "more is reserved than there is"
        assert self.free_bytes + self.reserved_bytes <= self.total_bytes, "bytes came from nowhere"


class _Turns:
    """A lock that is had in the order in which it was asked for."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next = self._serving = 0

    @property
    def num_waiting(self) -> int:
        """How many have asked and not ended their turn."""
        with self._changed:
            return self._next - self._serving

    def __enter__(self) -> None:
        with self._changed:
            mine = self._next
            self._next += 1
            self._changed.wait_for(lambda: self._serving == mine)

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._serving += 1
            self._changed.notify_all()


@dataclass(frozen=True)
class ResidentStat:
    """Prefixes that lie where the engine reads them."""

    num_prefixes: int
    size_bytes: int
    num_hits: int
    """Requests that found theirs there since the start: nothing was loaded for them."""


class PrefixPool:
    """Prefixes by name, so that sequences that begin alike read one copy. Unused ones go first."""

    def __init__(self, idle_bytes: int) -> None:
        self._idle_bytes = idle_bytes
        self._prefixes: OrderedDict[str, PrefixKV] = OrderedDict()
        self._num_hits = 0

    def stat(self) -> ResidentStat:
        """From any thread, what is there now."""
        sizes = [one.size_bytes for one in list(self._prefixes.values()) if one.is_complete]
        return ResidentStat(len(sizes), sum(sizes), self._num_hits)

    def find(self, name: str) -> PrefixKV | None:
        """The prefix of that name, or None. One that is not complete yet is filled by the first of its
        users whose pass begins."""
        prefix = self._prefixes.get(name)
        if prefix is not None:
            self._prefixes.move_to_end(name)
        return prefix

    def hold(self, prefix: PrefixKV) -> None:
        """One more sequence uses the prefix."""
        self._num_hits += prefix.is_complete
        self._prefixes.setdefault(prefix.name, prefix)
        prefix.users += 1

    def release(self, prefix: PrefixKV) -> None:
        """One sequence fewer. A prefix that was never completed is forgotten immediately."""
        prefix.users -= 1
        unfinished = prefix.users == 0 and not prefix.is_complete
        if unfinished and self._prefixes.get(prefix.name) is prefix:
            del self._prefixes[prefix.name]
        self.shrink(self._idle_bytes)

    def shrink(self, idle_bytes: int) -> None:
        """Drop unused prefixes, oldest first, until at most `idle_bytes` of them remain. One that is larger
        goes before all: it would take the others along."""
        idle = [prefix for prefix in self._prefixes.values() if prefix.users == 0]
        idle.sort(key=lambda prefix: prefix.size_bytes <= idle_bytes)
        excess = sum(prefix.size_bytes for prefix in idle) - idle_bytes
        for prefix in idle:
            if excess <= 0:
                return
            del self._prefixes[prefix.name]
            excess -= prefix.size_bytes

    def check(self) -> None:
        """Audit the accounts. Raises AssertionError."""
        assert all(prefix.users >= 0 for prefix in self._prefixes.values()), (
            "a prefix was released twice"
        )
