"""The store: finds blocks by their tokens, hands them out verified, keeps new ones.

    match ──> index                        no bytes move
    open  ──> fastest tier that holds it ──> Load ──> Reader, layer by layer, each verified
                                              └─ all came: the block moves up to the first tier
    put   ──> last tier of this machine, durable, then the faster ones
    write_behind ──> first tier at once, last tier from the background
                   either way the tiers across the network follow, each from a queue of its own

A lost, torn or damaged block is a counted miss.  The index follows the tiers: whatever came into or
left one, by our hand or another process's, is told by the tier's `changes` before each look.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import TracebackType
from typing import Self

from kdn.clock import Clock, SystemClock
from kdn.core import PUBLIC_SALT, BlockId, BlockKey, ContentId, Fingerprint, Recipe
from kdn.errors import BadInput, CorruptBlock, LostBlock, StoreError
from kdn.store.block.block import Block
from kdn.store.block.format import EncodedBlock
from kdn.store.block.reader import Reader, StoreLoad
from kdn.store.codecs import Codec, NoCodec
from kdn.store.failures import Failures
from kdn.store.index.index import BlockHit, Entry, Family, Index, Match
from kdn.store.index.journal import IndexJournal, Pages
from kdn.store.loads import Loads
from kdn.store.stat import Counts, ScrubReport, StoreStat
from kdn.store.stream.delivery import DeliveredLoad, Delivery
from kdn.store.stream.throughput import Links
from kdn.store.tenants.limits import TenantsLimits
from kdn.store.tenants.pins import Pins
from kdn.store.tenants.quotas import Quotas
from kdn.store.tenants.shared_pins import PersistentPins
from kdn.store.tenants.tenancy import Tenancy
from kdn.store.tiers.tier import Handle, Life, Tier
from kdn.store.writer import WorthWriting, Writer
from kdn.trace import NoTrace, Trace

__all__ = ["MEMORY_BYTES", "Store"]

MEMORY_BYTES = 1 << 30
WRITE_BEHIND_BYTES = 256 << 20
USES_PER_SAVE = 256
_DELIVERED = "delivered "


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


class Store:
    """Blocks in `tiers`, fastest first; the last one is where they last.

    Safe from several threads.  Owns the tiers: `close` closes them.
    """

    def __init__(
        self,
        tiers: Sequence[Tier],
        *,
        far: Sequence[Tier] = (),
        clock: Clock | None = None,
        trace: Trace | None = None,
        codec: Codec | None = None,
        write_behind_bytes: int = WRITE_BEHIND_BYTES,
        quotas: Quotas | None = None,
        persistent_pins: PersistentPins | None = None,
        limits: TenantsLimits | None = None,
        worth_writing: WorthWriting | None = None,
    ) -> None:
        """`far` are the tiers across a network: read last, written behind, never waited for.

        `pays` is asked before a block is written behind to a tier of that name.
        """
        self._local = tuple(tiers)
        self._tiers = (*tiers, *far)
        clock = clock or SystemClock()
        self.links = Links(clock)
        self.quotas = quotas or Quotas()
        self.persistent_pins = persistent_pins or PersistentPins(None, clock)
        self.limits = limits or TenantsLimits(None, clock)
        self._trace = trace or NoTrace()
        self._pins = Pins()
        self._counts = Counts()
        self._failures = Failures(self._counts, self._trace)
        self._lock = threading.RLock()
        self._index = Index()
        self._journal = IndexJournal()
        self._tenancy = Tenancy(
            self.quotas, self.limits, self._pins, self.persistent_pins, self._trace
        )
        self._intake = Writer(
            self._local,
            far,
            codec or NoCodec(),
            write_behind_bytes,
            self._tenancy,
            worth_writing,
            self._counts,
            self._failures,
            self._trace,
            follow=self._follow,
            on_corrupt=self._corrupt,
        )
        self._loads = Loads(
            self._tiers,
            on_whole=self._intake.promote,
            on_corrupt=self._corrupt,
            on_failed=self._failures.failed,
            finish=self._intake.finish,
            links=self.links,
        )
        with _no_collections():
            self._follow()

    # --- looking ---

    def match(
        self, fingerprint: Fingerprint, recipe: Recipe, salt: str, token_ids: Sequence[int]
    ) -> Match:
        """The longest leading run of `token_ids` that is stored for that model and recipe, under
        that salt or the public one.

        Moves no bytes. A block may be gone by the time it is opened, unless it is pinned.
        """
        self._follow()
        with self._lock:
            families = [Family(fingerprint, recipe, own) for own in (salt, PUBLIC_SALT)]
            match = self._match(families, token_ids)
        self._counts.add(lookups=1, lookup_tokens=len(token_ids), match_tokens=match.num_tokens)
        return match

    def find_content(self, content_id: ContentId) -> tuple[BlockId, ...]:
        """Every stored block of that text: each model, recipe and place it was computed at."""
        self._follow()
        with self._lock:
            return tuple(entry.block_id() for entry in self._index.find_content(content_id))

    def open(self, what: BlockHit | BlockId, delivery: Delivery | None = None) -> Reader | None:
        """The block, pinned and open for reading, or None: a counted miss.

        With a `delivery` what comes from a node may come in another encoding, as that chooses.
        """
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
            self._intake.later(0, self._save_uses)
        leave, tier = partial(self._leave, key, load), self.tier(load.tier)
        if delivery is not None and tier.transcodes:
            load = DeliveredLoad(load, tier, delivery)
        return Reader(load, hit.num_tokens, leave)

    def note_delivered(self, key: BlockKey, first: int, last: int, level: str, size: int) -> None:
        """Layers came, or were sent, at a level: counted, and in the trace."""
        self._counts.add(**{_DELIVERED + level: size})
        self._trace.event(
            "store.level", key=key, first=first, last=last, level=level, size_bytes=size
        )

    def _leave(self, key: BlockKey, load: StoreLoad) -> None:
        self._loads.leave(key, load)
        self._pins.release(key)

    def pinned(self, keys: Iterable[BlockKey]) -> AbstractContextManager[None]:
        """Inside, this process does not evict these blocks."""
        return self._pins.held(keys)

    def handle(self, key: BlockKey) -> Handle | None:
        """A block's encoded bytes as this machine's tiers hold them, for who verifies them himself.

        Raises CorruptBlock, StoreError.
        """
        for tier in self._local:
            handle = tier.open(key)
            if handle is not None:
                tier.touch(key)
                return handle
        return None

    def entry(self, key: BlockKey) -> Entry | None:
        """What is known of a block; None when no tier has it."""
        self._follow()
        with self._lock:
            return self._index.get(key)

    def entries(self) -> tuple[Entry, ...]:
        """Every block there is, in any tier."""
        self._follow()
        with self._lock:
            return tuple(self._index)

    def refresh(self) -> None:
        """Take in what came into tiers and left them, by whatever hand. `match` does so itself."""
        self._follow()

    def where(self, key: BlockKey) -> tuple[str, ...]:
        """The tiers that hold a block, fastest first."""
        return tuple(tier.name for tier in self._tiers if tier.holds(key))

    def pages(self, cursor: str) -> Pages:
        """What came and went since `cursor`; an empty or foreign one is told of every block."""
        self._follow()
        with self._lock:
            return self._journal.since(cursor, self._index)

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """Fastest first, those across the network last."""
        return self._tiers

    def tier(self, name: str) -> Tier:
        """The tier of that name. Raises BadInput, naming those there are."""
        for tier in self._tiers:
            if tier.name == name:
                return tier
        names = ", ".join(tier.name for tier in self._tiers)
        raise BadInput(f"this store has no tier {name!r}; it has {names}")

    # --- keeping ---

    def put(self, block: Block, codec: Codec | None = None) -> None:
        """Keep `block`; returns once the last tier has it for good.

        Raises NoSpace (counted, nothing half-written is left) or StoreError when it cannot be kept.
        """
        self._intake.put(block, codec)

    def put_encoded(self, encoded: EncodedBlock) -> None:
        """Keep a block that comes in its stored form and was checked whole. Raises as `put`."""
        self._intake.put_encoded(encoded)

    def write_behind(self, block: Block, codec: Codec | None = None) -> None:
        """Keep `block` in the first tier at once, in the last one soon. Promises nothing.

        It can be matched when this returns.  When too much waits already it stays in the first tier
        only, and that is counted.
        """
        self._intake.write_behind(block, codec)

    def put_into(self, tier: Tier, block: EncodedBlock) -> None:
        """Keep a block in one tier, within its tenant's quota. Raises NoSpace, StoreError."""
        self._tenancy.put_into(tier, block)

    def quota_of(self, salt: str) -> int | None:
        """The most bytes that tenant may hold in one tier: as decided, or else as set."""
        return self._tenancy.quota_of(salt)

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait for what is being written behind; False when that took longer than `timeout_s`."""
        return self._intake.flush(timeout_s)

    def replace(self, block: EncodedBlock) -> None:
        """Write a block anew wherever this machine holds it. Raises NoSpace, StoreError."""
        for tier in self._local:
            if tier.holds(block.key):
                tier.replace(block, self._tenancy.spares)
        self._follow()

    def drop(self, key: BlockKey) -> bool:
        """Forget a block in every tier; False when none had it. Open readers read on."""
        self._intake.forget(key)
        held = [self._drop_from(tier, key) for tier in self._tiers]
        if any(held):
            self._trace.event("store.drop", key=key)
        self._follow()
        return any(held)

    def _drop_from(self, tier: Tier, key: BlockKey) -> bool:
        """A tier across the network may fail to; that is counted, and the others go on."""
        if not tier.far:
            return tier.drop(key)
        try:
            return tier.drop(key)
        except StoreError as error:
            self._failures.failed(tier, error)
            return False

    def clear(self) -> None:
        """Forget every block, also those that wait to be written. Open readers read on."""
        self._intake.forget_all()
        for tier in self._tiers:
            for key in tier.block_keys():
                self._drop_from(tier, key)
        self._follow()

    # --- knowing ---

    def stat(self) -> StoreStat:
        """What was done since opening, and what is held now."""
        self._follow()
        tiers = {tier.name: tier.usage() for tier in self._tiers}
        names = (
            "lookups", "lookup_tokens", "match_tokens", "hits", "hit_tokens", "misses", "corrupt",
            "lost", "puts", "put_bytes", "dropped", "failed", "not_worth_writing",
        )  # fmt: skip
        return StoreStat(
            tiers=tiers,
            blocks=len(self._index),
            evicted=sum(usage.evicted for usage in tiers.values()),
            queued_bytes=self._intake.queued_bytes,
            bytes_per_s=self.links.all(),
            delivered=self._counts.beginning(_DELIVERED),
            open_circuits=tuple(tier.name for tier in self._tiers if not tier.reachable()),
            **{name: self._counts[name] for name in names},
        )

    def lives(self) -> dict[str, list[Life]]:
        """By tier, how long each block has been kept and how often used, where that is written
        down: what money saved and spent is worked out from."""
        return {tier.name: tier.lives() for tier in self._tiers}

    def verify(self) -> ScrubReport:
        """Read and verify every block of the last tier of this machine; damaged ones are put out
        of use."""
        blocks, size_bytes, corrupt = 0, 0, list[BlockKey]()
        tier = self._local[-1]
        for key in list(tier.block_keys()):
            found = self._loads.scrub(tier, key)
            if found is None:
                corrupt.append(key)
            blocks, size_bytes = blocks + 1, size_bytes + (found or 0)
        self._follow()
        return ScrubReport(blocks, size_bytes, tuple(corrupt))

    def check(self) -> None:
        """Audit the books once what is being written behind is written. Raises AssertionError."""
        self.flush()
        self._follow()
        with self._lock:
            self._index.check()
            self._loads.check()
            for tier in self._tiers:
                tier.check()
                for key in tier.block_keys():
                    assert key in self._index, f"{tier.name} holds {key}, the index does not"
            for entry in self._index:
                assert self._tier_of(entry.key), f"the index knows {entry.key}, no tier holds it"

    def close(self, timeout_s: float = 60.0) -> None:
        """Write what waits (for at most `timeout_s`) and give everything back."""
        self.flush(timeout_s)
        self._intake.forget_all()
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
                    self._failures.failed(tier, error)
                    continue
                holds, known = tier.holds, self._index
                came = [e for e in changes.added if e.key not in known and holds(e.key)]
                self._index.add(came)
                self._journal.note(came)
                gone = [key for key in changes.removed if not self._tier_of(key)]
                self._journal.note(entry for key in gone if (entry := self._index.get(key)))
                for key in gone:
                    self._index.remove(key)

    def _tier_of(self, key: BlockKey) -> Tier | None:
        return next((tier for tier in self._tiers if tier.holds(key)), None)

    def _reachable_tier_of(self, key: BlockKey) -> Tier | None:
        holders = (tier for tier in self._tiers if tier.holds(key))
        return next((tier for tier in holders if tier.reachable()), None)

    def _match(self, families: Sequence[Family], token_ids: Sequence[int]) -> Match:
        hits = []
        for entry, num_tokens in self._index.match(families, token_ids):
            block_id, tier = entry.block_id(), self._tier_of(entry.key)
            if tier is None or block_id.key != entry.key:
                self._lost_its_way(entry)
                break
            if not tier.reachable():
                tier = self._reachable_tier_of(entry.key)
                if tier is None:
                    break  # given a rest: as good as not there
            hits.append(BlockHit(block_id, num_tokens, tier.name))
        return Match(tuple(hits))

    # --- what became of a block ---

    def _corrupt(self, tier: Tier, key: BlockKey, error: CorruptBlock) -> None:
        """Damaged: out of use, counted, and to be computed again. Lost on the way: only counted."""
        if isinstance(error, LostBlock):
            self._counts.add(lost=1)
            self._trace.event("store.lost", tier=tier.name, key=key, reason=str(error))
            return
        self._counts.add(corrupt=1)
        self._trace.event("store.corrupt", tier=tier.name, key=key, reason=str(error))
        try:
            tier.quarantine(key)
        except StoreError as failure:
            self._failures.failed(tier, failure)
        self._follow()

    def _lost_its_way(self, entry: Entry) -> None:
        """A catalogue row whose name does not fit its contents: it would never be found."""
        tier = self._tier_of(entry.key)
        if tier is not None:
            self._corrupt(tier, entry.key, CorruptBlock("the catalogue's row is damaged"))

    def _save_uses(self) -> None:
        for tier in self._tiers:
            try:
                tier.save()
            except StoreError as error:
                self._failures.failed(tier, error)
