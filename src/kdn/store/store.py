"""The store: finds blocks by their tokens, hands them out verified, keeps new ones.

    match ──> index                        no bytes move
    open  ──> fastest tier that holds it ──> Load ──> Reader, layer by layer, each verified
                                              └─ all came: the block moves up to the first tier
    put   ──> last tier, durable, then the faster ones
    put_behind ──> first tier at once, last tier from the background

A lost, torn or damaged block is a counted miss.  The index follows the tiers: whatever came into or
left one, by our hand or another process's, is told by the tier's `changes` before each look.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from kdn.clock import Clock, SystemClock
from kdn.core import BlockId, BlockKey, ContentId, Fingerprint, Recipe
from kdn.errors import CorruptBlock, NoSpace, StoreError
from kdn.store.behind import WriteBehind
from kdn.store.block import Block
from kdn.store.codec import Codec, NoCodec
from kdn.store.disk import DiskTier
from kdn.store.format import EncodedBlock, encode_block
from kdn.store.index import BlockHit, Entry, Family, Index, Match
from kdn.store.loads import Loads
from kdn.store.memory import MemoryTier
from kdn.store.pins import Pins
from kdn.store.policies import Rules, Use, make_policy
from kdn.store.reader import Load, Reader
from kdn.store.stat import Counts, ScrubReport, StoreStat
from kdn.store.tier import Life, Tier
from kdn.trace import NoTrace, Trace

__all__ = ["Store", "open_store"]

MEMORY_BYTES = 1 << 30
BEHIND_BYTES = 256 << 20
USES_PER_SAVE = 256


class Store:
    """Blocks in `tiers`, fastest first; the last one is where they last.

    Safe from several threads.  Owns the tiers: `close` closes them.
    """

    def __init__(
        self,
        tiers: Sequence[Tier],
        *,
        trace: Trace | None = None,
        codec: Codec | None = None,
        behind_bytes: int = BEHIND_BYTES,
    ) -> None:
        self._tiers = tuple(tiers)
        self._trace = trace or NoTrace()
        self._codec = codec or NoCodec()
        self._behind = WriteBehind(behind_bytes)
        self._pins = Pins()
        self._counts = Counts()
        self._lock = threading.RLock()
        self._index = Index()
        self._queued: set[BlockKey] = set()
        self._loads = Loads(self._tiers, self._promote, self._corrupt)
        self._follow()

    # --- looking ---

    def match(
        self, fingerprint: Fingerprint, recipe: Recipe, salt: str, token_ids: Sequence[int]
    ) -> Match:
        """The longest leading run of `token_ids` that is stored for that model, recipe and salt.

        Moves no bytes. A block may be gone by the time it is opened, unless it is pinned.
        """
        self._follow()
        with self._lock:
            match = self._match(Family(fingerprint, recipe, salt), token_ids)
        self._counts.add(lookups=1, lookup_tokens=len(token_ids), match_tokens=match.num_tokens)
        return match

    def find_content(self, content_id: ContentId) -> tuple[BlockId, ...]:
        """Every stored block of that text: each model, recipe and place it was computed at."""
        self._follow()
        with self._lock:
            return tuple(entry.block_id() for entry in self._index.find_content(content_id))

    def open(self, what: BlockHit | BlockId) -> Reader | None:
        """The block, pinned and open for reading, or None: a counted miss."""
        hit = what if isinstance(what, BlockHit) else BlockHit(what, what.num_tokens, "")
        key = hit.id.key
        self._pins.hold(key)
        load = self._loads.enter(key)
        if load is None:
            self._follow()  # another process may have brought it since
            load = self._loads.enter(key)
        if load is None:
            self._pins.release(key)
            self._counts.add(misses=1)
            self._trace.event("store.miss", key=key, tokens=hit.num_tokens)
            return None
        self._counts.add(hits=1, hit_tokens=hit.num_tokens)
        if load.tier != self._tiers[-1].name:
            # or what is always read from memory would look unused where it lasts, and go first
            self._tiers[-1].touch(key)
        self._trace.event("store.hit", key=key, tokens=hit.num_tokens, tier=load.tier)
        if self._counts["hits"] % USES_PER_SAVE == 0:
            self._behind.offer(0, self._save_uses)
        return Reader(load, hit.num_tokens, partial(self._leave, key, load))

    def _leave(self, key: BlockKey, load: Load) -> None:
        self._loads.leave(key, load)
        self._pins.release(key)

    def pinned(self, keys: Iterable[BlockKey]) -> AbstractContextManager[None]:
        """Inside, this process does not evict these blocks."""
        return self._pins.held(keys)

    # --- keeping ---

    def put(self, block: Block) -> None:
        """Keep `block`; returns once the last tier has it for good.

        Raises NoSpace (counted, nothing half-written is left) or StoreError when it cannot be kept.
        """
        if self._lasting(block.id.key):
            return
        encoded = encode_block(block, self._codec)
        try:
            self._put_last(encoded)
        finally:
            self._follow()
        for tier in self._tiers[:-1]:
            self._put_gladly(tier, encoded)
        self._follow()

    def put_behind(self, block: Block) -> None:
        """Keep `block` in the first tier at once, in the last one soon. Promises nothing.

        It can be matched when this returns.  When too much waits already it stays in the first tier
        only, and that is counted.
        """
        key = block.id.key
        if self._lasting(key) or key in self._queued:
            return
        encoded = encode_block(block, self._codec)
        self._put_gladly(self._tiers[0], encoded)
        self._follow()
        if len(self._tiers) > 1:
            self._queue(encoded)

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait for what is being written behind; False when that took longer than `timeout_s`."""
        return self._behind.flush(timeout_s)

    def drop(self, key: BlockKey) -> bool:
        """Forget a block in every tier; False when none had it. Open readers read on."""
        with self._lock:
            self._queued.discard(key)
        held = [tier.drop(key) for tier in self._tiers]
        if any(held):
            self._trace.event("store.drop", key=key)
        self._follow()
        return any(held)

    def clear(self) -> None:
        """Forget every block, also those that wait to be written. Open readers read on."""
        self._unqueue()
        for tier in self._tiers:
            for key in tier.kept():
                tier.drop(key)
        self._follow()

    # --- knowing ---

    def stat(self) -> StoreStat:
        """What was done since opening, and what is held now."""
        self._follow()
        tiers = {tier.name: tier.usage() for tier in self._tiers}
        names = (
            "lookups", "lookup_tokens", "match_tokens", "hits", "hit_tokens", "misses", "corrupt",
            "puts", "put_bytes", "dropped", "failed",
        )  # fmt: skip
        return StoreStat(
            tiers=tiers,
            blocks=len(self._index),
            evicted=sum(usage.evicted for usage in tiers.values()),
            queued_bytes=self._behind.size_bytes,
            **{name: self._counts[name] for name in names},
        )

    def lives(self) -> dict[str, list[Life]]:
        """By tier, how long each block has been kept and how often used, where that is written
        down: what money saved and spent is worked out from."""
        return {tier.name: tier.lives() for tier in self._tiers}

    def verify(self) -> ScrubReport:
        """Read and verify every block of the last tier; damaged ones are put out of use."""
        blocks, size_bytes, corrupt = 0, 0, list[BlockKey]()
        tier = self._tiers[-1]
        for key in list(tier.kept()):
            found = self._loads.scrub(tier, key)
            if found is None:
                corrupt.append(key)
            blocks, size_bytes = blocks + 1, size_bytes + (found or 0)
        self._follow()
        return ScrubReport(blocks, size_bytes, tuple(corrupt))

    def check(self) -> None:
        """Audit the books of the store and its tiers, at a quiet moment. Raises AssertionError."""
        self._follow()
        with self._lock:
            self._index.check()
            self._loads.check()
            for tier in self._tiers:
                tier.check()
                for key in tier.kept():
                    assert key in self._index, f"{tier.name} holds {key}, the index does not"
            for entry in self._index:
                assert self._tier_of(entry.key), f"the index knows {entry.key}, no tier holds it"

    def close(self, timeout_s: float = 60.0) -> None:
        """Write what waits (for at most `timeout_s`) and give everything back."""
        self._behind.flush(timeout_s)
        self._unqueue()
        for tier in self._tiers:
            tier.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()

    # --- the index follows the tiers ---

    def _follow(self) -> None:
        """Bring the index up to date. A tier that cannot tell is passed over, and counted."""
        with self._lock:
            for tier in self._tiers:
                try:
                    changes = tier.changes()
                except StoreError as error:
                    self._failed(tier, error)
                    continue
                self._index.add(entry for entry in changes.added if tier.holds(entry.key))
                for key in changes.removed:
                    if not self._tier_of(key):
                        self._index.remove(key)

    def _tier_of(self, key: BlockKey) -> Tier | None:
        return next((tier for tier in self._tiers if tier.holds(key)), None)

    def _match(self, family: Family, token_ids: Sequence[int]) -> Match:
        hits = []
        for entry, num_tokens in self._index.match(family, token_ids):
            block_id, tier = entry.block_id(), self._tier_of(entry.key)
            if tier is None or block_id.key != entry.key:
                self._lost_its_way(entry)
                break
            hits.append(BlockHit(block_id, num_tokens, tier.name))
        return Match(tuple(hits))

    # --- what became of a block ---

    def _promote(self, block: EncodedBlock) -> None:
        self._put_gladly(self._tiers[0], block)
        self._follow()

    def _corrupt(self, tier: Tier, key: BlockKey, error: CorruptBlock) -> None:
        """Damaged: out of use, counted, and to be computed again."""
        self._counts.add(corrupt=1)
        self._trace.event("store.corrupt", tier=tier.name, key=key, reason=str(error))
        try:
            tier.quarantine(key)
        except StoreError as failure:
            self._failed(tier, failure)
        self._follow()

    def _lost_its_way(self, entry: Entry) -> None:
        """A catalogue row whose name does not fit its contents: it would never be found."""
        tier = self._tier_of(entry.key)
        if tier is not None:
            self._corrupt(tier, entry.key, CorruptBlock("the catalogue's row is damaged"))

    def _dropped(self, block: EncodedBlock, where: str, reason: str) -> None:
        self._counts.add(dropped=1)
        self._trace.event("store.refuse", tier=where, key=block.key, reason=reason)

    def _failed(self, tier: Tier, error: StoreError) -> None:
        self._counts.add(failed=1)
        self._trace.event("store.failed", tier=tier.name, reason=str(error))

    # --- putting ---

    def _queue(self, block: EncodedBlock) -> None:
        with self._lock:
            self._queued.add(block.key)
        if not self._behind.offer(block.size_bytes, lambda: self._write_behind(block)):
            with self._lock:
                self._queued.discard(block.key)
            self._dropped(block, "queue", "too much waits to be written")

    def _unqueue(self) -> None:
        """Give up what waits to be written."""
        self._behind.forget()
        self._behind.flush()
        with self._lock:
            self._queued.clear()

    def _lasting(self, key: BlockKey) -> bool:
        """Does the last tier have the block for good? Counts as a use if so."""
        last = self._tiers[-1]
        try:
            handle = last.open(key)
        except CorruptBlock as error:
            self._corrupt(last, key, error)
            return False
        if handle is None:
            return False
        handle.close()
        last.touch(key)
        return True

    def _put_last(self, block: EncodedBlock) -> None:
        last = self._tiers[-1]
        try:
            last.put(block, self._pins.__contains__)
        except NoSpace as error:
            self._dropped(block, last.name, str(error))
            raise
        except StoreError as error:
            self._failed(last, error)
            raise
        self._counts.add(puts=1, put_bytes=block.size_bytes)
        self._trace.event("store.put", tier=last.name, key=block.key, size_bytes=block.size_bytes)

    def _put_gladly(self, tier: Tier, block: EncodedBlock) -> None:
        """Into a tier that need not have it."""
        try:
            tier.put(block, self._pins.__contains__)
        except NoSpace as error:
            self._dropped(block, tier.name, str(error))
        except StoreError as error:
            self._failed(tier, error)

    def _write_behind(self, block: EncodedBlock) -> None:
        if block.key not in self._queued:
            return  # dropped meanwhile
        with suppress(StoreError):  # counted where it was raised
            self._put_last(block)
        with self._lock:
            self._queued.discard(block.key)
        self._follow()

    def _save_uses(self) -> None:
        for tier in self._tiers:
            try:
                tier.save()
            except StoreError as error:
                self._failed(tier, error)


def open_store(
    folder: Path | None,
    *,
    memory_bytes: int = MEMORY_BYTES,
    disk_bytes: int | None = None,
    clock: Clock | None = None,
    trace: Trace | None = None,
    policy: str = "lru",
    rules: Rules | None = None,
    saving: Callable[[Use], float] | None = None,
) -> Store:
    """A store of memory over the disk in `folder`, or of memory alone.

    `disk_bytes` None means the cap last given for this folder, or else 20 GB or a tenth of what is
    free, whichever is less.  `policy` says which blocks go when room is short, `rules` what people
    decide over it, `saving` what a use of a block saves (for `value`); BadInput for an unknown one.
    Raises ForeignStore for a folder that belongs to something else, StoreError for one that cannot
    be used.
    """
    trace, clock = trace or NoTrace(), clock or SystemClock()
    tiers: list[Tier] = [MemoryTier(memory_bytes, trace, make_policy(policy, rules, saving), clock)]
    if folder is not None:
        # without a policy of its own, processes on one folder share the catalogue's order of use
        ranking = None if policy == "lru" and rules is None else make_policy(policy, rules, saving)
        tiers.append(DiskTier(folder, disk_bytes, clock, trace, ranking))
    return Store(tiers, trace=trace)
