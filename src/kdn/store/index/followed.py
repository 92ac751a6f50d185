"""The index of what a store's tiers hold, brought up to date before each look, and its last changes.

What came into a tier or left it, by this process or another, is told by the tier's `changes`.
"""

from __future__ import annotations

import gc
import secrets
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from kdn.clock import Clock, SystemClock
from kdn.core import BlockId, BlockKey, ContentId
from kdn.errors import CorruptBlock
from kdn.store.index.index import BlockHit, Entry, Family, Index, Match
from kdn.store.tiers.tier import Outcomes, Tier, Tiers

__all__ = ["FollowedIndex", "IndexJournal", "Leaver", "Pages"]

KEPT_CHANGES = 10_000
KEPT_LEAVERS = 1_000
"""Blocks that left, remembered whole: about 1 KB each."""


@dataclass(frozen=True)
class Leaver:
    """A block that no tier holds any more, and when that was noticed (the clock's seconds)."""

    entry: Entry
    left_s: float


@dataclass(frozen=True)
class Pages:
    """Changes since a cursor; `whole` says that `added` is all there is."""

    cursor: str
    added: tuple[Entry, ...] = ()
    removed: tuple[tuple[BlockKey, str], ...] = ()
    """Key and salt: a tenant must not learn what another one had."""
    whole: bool = False


class IndexJournal:
    """The last changes of one store since it was opened. Not safe from several threads by itself.

    A cursor is good for one opening of the store; any other one is answered with everything.  It does not
    tell how much changed: who may see a part of the blocks could count the others' by it.
    """

    def __init__(self) -> None:
        self._cursor = ""
        self._counts: dict[str, int] = {}
        """How many changes the owners of the last cursors have seen."""
        self._changed: deque[tuple[BlockKey, str]] = deque(maxlen=KEPT_CHANGES)
        self._count = 0

    def note(self, entries: Iterable[Entry]) -> None:
        """These came or went."""
        known = list(entries)
        self._count += len(known)
        self._changed.extend((entry.key, entry.family.salt) for entry in known[-KEPT_CHANGES:])

    def since(self, cursor: str, index: Index) -> Pages:
        """What changed since `cursor` (empty: since ever), as `index` has it now."""
        now = self._now()
        missed = self._missed(cursor)
        if missed is None:
            return Pages(now, tuple(index), whole=True)
        names = dict.fromkeys(list(self._changed)[len(self._changed) - missed :])
        entries = [(name, index.get(name[0])) for name in names]
        added = tuple(entry for _, entry in entries if entry is not None)
        return Pages(now, added, tuple(name for name, entry in entries if entry is None))

    def _now(self) -> str:
        """The cursor of who has seen everything: the same one until something changes."""
        if self._counts.get(self._cursor) != self._count:
            self._cursor = secrets.token_hex(16)
            self._counts[self._cursor] = self._count
            if len(self._counts) > KEPT_CHANGES:
                del self._counts[next(iter(self._counts))]
        return self._cursor

    def _missed(self, cursor: str) -> int | None:
        """How many changes the cursor's owner has not seen; None when they are not all here."""
        missed = self._count - self._counts.get(cursor, -1)
        return missed if missed <= len(self._changed) else None


class FollowedIndex:
    """Finds the blocks of `tiers` by their tokens. Safe from several threads.

    A tier that cannot tell its changes is passed over, and counted.
    """

    def __init__(self, tiers: Tiers, outcomes: Outcomes, clock: Clock | None = None) -> None:
        self._tiers = tiers
        self._outcomes = outcomes
        self._clock = clock or SystemClock()
        self._leavers: deque[Leaver] = deque(maxlen=KEPT_LEAVERS)
        self._arrivals: deque[tuple[BlockKey, float]] = deque(maxlen=KEPT_CHANGES)
        self._lock = threading.RLock()
        self._index = Index()
        self._journal = IndexJournal()
        with _no_collections():
            self.refresh()
        self._arrivals.clear()

    def __len__(self) -> int:
        """How many different blocks there were at the last look. Waits for nothing."""
        return len(self._index)

    def refresh(self) -> None:
        """Take in what came into tiers and left them. Every look below does so itself."""
        with self._lock:
            for tier in self._tiers:
                with self._outcomes.survived(tier):
                    self._follow(tier)

    def match(self, families: Sequence[Family], token_ids: Sequence[int], start: int = 0) -> Match:
        """The longest leading run of tokens that reachable tiers hold, as `Index.match`."""
        self.refresh()
        hits = []
        with self._lock:
            for entry, num_tokens in self._index.match(families, token_ids, start):
                block_id, tier = entry.block_id(), self._tiers.holder(entry.key)
                if tier is None or block_id.key != entry.key:
                    self._quarantine_misnamed(entry)
                    break
                if not tier.is_reachable():
                    break  # its circuit is open: as good as not there
                hits.append(BlockHit(block_id, num_tokens, tier.name))
        return Match(tuple(hits))

    def among(self, families: Iterable[Family]) -> frozenset[Family]:
        """Those of the families that have blocks in any tier: one look for all of them."""
        self.refresh()
        with self._lock:
            return frozenset(filter(self._index.has_family, families))

    def find_content(self, content_id: ContentId) -> tuple[BlockId, ...]:
        """Every stored block of that text: each model, recipe and place it was computed at."""
        self.refresh()
        with self._lock:
            return tuple(entry.block_id() for entry in self._index.find_content(content_id))

    def get(self, key: BlockKey) -> Entry | None:
        """What is known of a block; None when no tier has it."""
        self.refresh()
        with self._lock:
            return self._index.get(key)

    def entries(self) -> tuple[Entry, ...]:
        """Every block there is, in any tier."""
        self.refresh()
        with self._lock:
            return tuple(self._index)

    def leavers(self) -> tuple[Leaver, ...]:
        """The last blocks that left since the store was opened, oldest first."""
        self.refresh()
        with self._lock:
            return tuple(self._leavers)

    def arrived_after(self, when_s: float) -> frozenset[BlockKey]:
        """Blocks that were noticed after this time of the clock, of the last ones since the opening."""
        self.refresh()
        with self._lock:
            return frozenset(key for key, came_s in self._arrivals if came_s > when_s)

    def pages(self, cursor: str) -> Pages:
        """What came and went since `cursor`; an empty or foreign one is told of every block."""
        self.refresh()
        with self._lock:
            return self._journal.since(cursor, self._index)

    def quarantine(self, tier: Tier, key: BlockKey, error: CorruptBlock) -> None:
        """Put a damaged block of a tier out of use; one that was lost on the way is only counted."""
        self._outcomes.corrupt(tier, key, error)
        self.refresh()

    def check(self) -> None:
        """Audit index and tiers. Raises AssertionError saying what does not add up."""
        self.refresh()
        with self._lock:
            self._index.check()
            for tier in self._tiers:
                tier.check()
                for key in tier.block_keys():
                    assert key in self._index, f"{tier.name} holds {key}, the index does not"
            for entry in self._index:
                assert self._tiers.where(entry.key), f"no tier holds {entry.key} of the index"

    def _follow(self, tier: Tier) -> None:
        changes = tier.changes()
        holds, known = tier.holds, self._index
        came = [entry for entry in changes.added if entry.key not in known and holds(entry.key)]
        self._index.add(came)
        self._journal.note(came)
        now_s = self._clock.now()
        self._arrivals.extend((entry.key, now_s) for entry in came)
        gone = [key for key in changes.removed if not self._tiers.where(key)]
        left = [entry for key in gone if (entry := self._index.get(key))]
        self._journal.note(left)
        self._leavers.extend(Leaver(entry, now_s) for entry in left[-KEPT_LEAVERS:])
        for key in gone:
            self._index.remove(key)

    def _quarantine_misnamed(self, entry: Entry) -> None:
        """A catalogue row whose name does not fit its contents: it would never be found."""
        tier = self._tiers.holder(entry.key)
        if tier is not None:
            self.quarantine(tier, entry.key, CorruptBlock("the catalogue's row is damaged"))


@contextmanager
def _no_collections() -> Iterator[None]:
    """A hundred thousand entries that all stay would have the collector go over them again and
    again: a third of the time that opening takes."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
