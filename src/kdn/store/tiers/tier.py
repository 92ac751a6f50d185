"""The seam "where are the bytes": a tier stores encoded blocks by key.

`Tier` is what every request uses, `ManagedTier` adds what operators do, and a `Transcoder` gives layers in
another encoding than the stored one.  `Tiers` are those of one store, fastest first; `Outcomes` counts what
becomes of blocks in them.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from kdn.core import BlockKey
from kdn.errors import BadInput, CorruptBlock, LostBlock, StoreError
from kdn.store.block.format import EncodedBlock
from kdn.store.block.reader import Handle
from kdn.store.index.index import Entry
from kdn.trace import Trace

__all__ = [
    "BlockLife",
    "Changes",
    "Holding",
    "ManagedTier",
    "Outcomes",
    "Spare",
    "Tier",
    "TierUsage",
    "Tiers",
    "Transcoder",
]

Spare = Callable[[BlockKey], bool]
"""Says which blocks may not be evicted just now."""


@dataclass(frozen=True)
class TierUsage:
    """What a tier holds. `evicted` counts the blocks it gave up for room since it was opened."""

    blocks: int
    tokens: int
    size_bytes: int
    capacity_bytes: int | None
    """None: the tier has no cap of ours."""
    evicted: int = 0


@dataclass(frozen=True)
class Changes:
    """Blocks that came into a tier, and keys that left it."""

    added: tuple[Entry, ...] = ()
    removed: tuple[BlockKey, ...] = ()


class Holding(NamedTuple):
    """A tenant's block in a tier."""

    key: BlockKey
    size_bytes: int


class BlockLife(NamedTuple):
    """What a tier remembers of a block it holds: enough to say what it cost and saved."""

    start: int
    num_tokens: int
    size_bytes: int
    age_s: float
    """Since it was written."""
    uses: int


class Transcoder(Protocol):
    """Gives layers of stored blocks in another encoding than the stored one."""

    def transcode(
        self, key: BlockKey, start: int, stop: int, codec: str, max_bytes: int
    ) -> bytes | memoryview | None:
        """Layers [start, stop) in `codec`, for `decode_layers`; None where that cannot be had.

        No more than `max_bytes` are taken.

        Raises StoreError when the tier cannot be asked.
        """


class Tier(ABC):
    """Stores encoded blocks. Not finding one is an answer (None), not an error.

    All calls are safe from several threads.
    """

    name: str
    trusted: bool
    """Were the bytes verified on the way in, in a place where they cannot change since?"""
    far: bool = False
    """Is it across a network? Then it is written behind, and may fail while others are well."""
    transcoder: Transcoder | None = None
    """What gives layers in other encodings; None: blocks come as they are stored."""

    @abstractmethod
    def open(self, key: BlockKey) -> Handle | None:
        """The block, held open: it can be read to its end even if it is dropped meanwhile.

        None when it is not here. Raises CorruptBlock when what is here cannot be a block, and
        StoreError when the tier cannot be asked.
        """

    @abstractmethod
    def put(self, block: EncodedBlock, spare: Spare) -> None:
        """Store `block`, evicting others except those that `spare` names. Returns once it is stored
        as durably as the tier can; storing a block twice is the same as once.

        Raises NoSpace, having evicted nothing, when it does not fit.
        """

    @abstractmethod
    def drop(self, key: BlockKey) -> bool:
        """Remove a block; False when it was not here."""

    @abstractmethod
    def holds(self, key: BlockKey) -> bool:
        """Is the block here, as far as memory says? Waits for nothing."""

    @abstractmethod
    def changes(self) -> Changes:
        """What came and went since the last call, by any process; the first call tells all.

        A key may be told of more than once, and may be gone again: `holds` decides.
        """

    @abstractmethod
    def usage(self) -> TierUsage:
        """How full the tier was when it last looked. Waits for no disk, network or other process."""

    def is_reachable(self) -> bool:
        """Would the tier be asked just now? False while its circuit is open after failures."""
        return True

    def touch(self, key: BlockKey) -> None:
        """Note that the block was used."""
        return

    def quarantine(self, key: BlockKey) -> None:
        """Take a damaged block out of use; a tier that can moves it aside for inspection."""
        self.drop(key)

    def save(self) -> None:
        """Write down what is only in memory (when blocks were used)."""
        return

    def close(self) -> None:
        """Give back what the tier holds of the machine. Its blocks stay where they are durable."""
        return


class ManagedTier(Tier):
    """A tier that operators can list, count, rewrite and audit."""

    read_only = ""
    """Why nothing in it is changed, where that is so."""
    outlives_process = True
    """Does it hold its blocks when this process has ended?"""

    def block_keys(self) -> Iterator[BlockKey]:
        """Every key that is here."""
        return iter(())

    def coming_keys(self) -> Sequence[BlockKey]:
        """Blocks that may be here soon, though their callers have given up waiting."""
        return ()

    def holdings(self, salt: str) -> Sequence[Holding]:
        """A tenant's blocks with their sizes, least recently used first."""
        return ()

    def replace(self, block: EncodedBlock, spare: Spare) -> None:
        """Store `block` in place of the one of the same key. Raises as `put`."""
        self.drop(block.key)
        self.put(block, spare)

    def lives(self) -> list[BlockLife]:
        """How long each block has been here and how often it was used, where that is recorded."""
        return list(self.lives_by_key().values())

    def lives_by_key(self) -> dict[BlockKey, BlockLife]:
        """The same by block."""
        return {}

    def left_keys(self) -> frozenset[BlockKey]:
        """Blocks that were here lately and are not now, where that is recorded: by any process."""
        return frozenset()

    def check(self) -> None:
        """Audit the tier. Raises AssertionError saying what does not add up."""
        return


class Tiers:
    """The tiers of one store, fastest first: `local` ones, the last of which is durable, then `far` ones."""

    def __init__(self, local: Sequence[ManagedTier], far: Sequence[ManagedTier] = ()) -> None:
        self.local = tuple(local)
        self.far = tuple(far)
        self._all = (*self.local, *self.far)

    def __iter__(self) -> Iterator[ManagedTier]:
        return iter(self._all)

    @property
    def fastest(self) -> ManagedTier:
        """The first that is asked."""
        return self._all[0]

    @property
    def durable(self) -> ManagedTier:
        """The last tier of this machine: a block that is put is safe once it is there."""
        return self.local[-1]

    def named(self, name: str) -> ManagedTier:
        """The tier of that name. Raises BadInput, naming those there are."""
        for tier in self._all:
            if tier.name == name:
                return tier
        names = ", ".join(tier.name for tier in self._all)
        raise BadInput(f"this store has no tier {name!r}; it has {names}")

    def holder(self, key: BlockKey) -> ManagedTier | None:
        """The fastest tier that holds a block, reachable ones before others; None when none does."""
        first = None
        for tier in self._all:
            if tier.holds(key):
                if tier.is_reachable():
                    return tier
                first = first or tier
        return first

    def where(self, key: BlockKey) -> tuple[str, ...]:
        """The names of the tiers that hold a block, fastest first."""
        return tuple(tier.name for tier in self._all if tier.holds(key))

    def open_local(self, key: BlockKey) -> Handle | None:
        """A block's encoded bytes as this machine holds them, for callers that verify them.

        Raises CorruptBlock, StoreError.
        """
        for tier in self.local:
            handle = tier.open(key)
            if handle is not None:
                tier.touch(key)
                return handle
        return None

    def lives(self) -> dict[str, list[BlockLife]]:
        """By tier, how long each block has been stored and how often it was used."""
        return {tier.name: tier.lives() for tier in self._all}


_COUNTED = (
    "lookups", "lookup_tokens", "match_tokens", "hits", "hit_tokens", "misses", "corrupt", "lost", "puts",
    "put_bytes", "dropped", "failed", "not_worth_writing",
)  # fmt: skip
"""The counts that only grow."""


class Outcomes:
    """Counts what becomes of blocks, and tells the trace. Safe from several threads.

    Nothing here raises: the caller goes on with a miss, or with a block that is not stored.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._delivered: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        """By tier: times that it could not be used, and damaged or lost blocks that it gave."""

    def count(self, **amounts: int) -> int:
        """Add to counts; the new value of the first."""
        with self._lock:
            self._counts.update(amounts)
            return self._counts[next(iter(amounts))]

    def counts(self) -> dict[str, int]:
        """Every count that only grows, by its name in `StoreStat`."""
        with self._lock:
            return {name: self._counts[name] for name in _COUNTED}

    def delivered_bytes(self) -> dict[str, int]:
        """Bytes delivered, by level."""
        with self._lock:
            return dict(sorted(self._delivered.items()))

    def hit(self, key: BlockKey, num_tokens: int, tier: str) -> int:
        """A block was opened; how many were by now."""
        self._trace.event("store.hit", key=key, tokens=num_tokens, tier=tier)
        return self.count(hits=1, hit_tokens=num_tokens)

    def missed(self, key: BlockKey, num_tokens: int) -> None:
        """A block was wanted and no tier could give it."""
        self.count(misses=1)
        self._trace.event("store.miss", key=key, tokens=num_tokens)

    def put(self, tier: Tier, key: BlockKey, size_bytes: int) -> None:
        """A block is durable."""
        self.count(puts=1, put_bytes=size_bytes)
        self._trace.event("store.put", tier=tier.name, key=key, size_bytes=size_bytes)

    def removed(self, key: BlockKey) -> None:
        """A block was dropped on request."""
        self._trace.event("store.drop", key=key)

    def dropped(self, key: BlockKey, where: str, reason: str) -> None:
        """A block found no room in a tier or in the queue to it."""
        self.count(dropped=1)
        self._trace.event("store.refuse", tier=where, key=key, reason=reason)

    def not_worth_writing(self, tier: Tier, key: BlockKey) -> None:
        """No use would repay writing the block to that tier."""
        self.count(not_worth_writing=1)
        self._trace.event("store.not_worth_writing", tier=tier.name, key=key)

    def delivered(self, key: BlockKey, first: int, last: int, level: str, size_bytes: int) -> None:
        """Layers came, or were sent, at a level."""
        with self._lock:
            self._delivered[level] += size_bytes
        self._trace.event(
            "store.level", key=key, first=first, last=last, level=level, size_bytes=size_bytes
        )

    def failed(self, tier: Tier, error: StoreError) -> None:
        """A tier could not be used."""
        self.errors[tier.name] += 1
        self.count(failed=1)
        self._trace.event("store.failed", tier=tier.name, reason=str(error))

    def corrupt(self, tier: Tier, key: BlockKey, error: CorruptBlock) -> None:
        """Damaged: put out of use, and to be computed again. Lost on the way: only counted."""
        self.errors[tier.name] += 1
        if isinstance(error, LostBlock):
            self.count(lost=1)
            self._trace.event("store.lost", tier=tier.name, key=key, reason=str(error))
            return
        self.count(corrupt=1)
        self._trace.event("store.corrupt", tier=tier.name, key=key, reason=str(error))
        with self.survived(tier):
            tier.quarantine(key)

    @contextmanager
    def survived(self, tier: Tier) -> Iterator[None]:
        """Inside, a StoreError of the tier is counted and goes no further."""
        try:
            yield
        except StoreError as error:
            self.failed(tier, error)
