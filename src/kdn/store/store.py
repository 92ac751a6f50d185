"""The store: finds blocks by their tokens, hands them out verified, stores new ones.

    match ──> index                        no bytes move
    open  ──> fastest tier that holds it ──> Load ──> Reader, layer by layer, each verified
                                              └─ all came: the block moves up to the fastest tier
    put   ──> the durable tier, then the faster ones
    write_behind ──> fastest tier immediately, durable tier in the background
                   in both cases the far tiers follow, each from a queue of its own

A lost, torn or damaged block is a counted miss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Self

from kdn.clock import Clock, SystemClock
from kdn.core import EXACT, PUBLIC_SALT, BlockId, BlockKey, ContentId, Fingerprint, Recipe
from kdn.store.block.format import Block, EncodedBlock
from kdn.store.block.reader import Load, Reader, StoreLoad
from kdn.store.codecs import Codec
from kdn.store.index.followed import FollowedIndex
from kdn.store.index.index import BlockHit, Family, Match
from kdn.store.links import Links
from kdn.store.loads import Loads
from kdn.store.stream.delivery import DeliveredLoad, Delivery
from kdn.store.tenants.tenancy import PersistentPins, Quotas, Tenancy, TenantsLimits
from kdn.store.tiers.tier import ManagedTier, Outcomes, Tiers, TierUsage
from kdn.store.writer import WorthWriting, WriteQueues, Writer
from kdn.trace import NoTrace, Trace

__all__ = ["MEMORY_BYTES", "ScrubReport", "Store", "StoreStat"]

MEMORY_BYTES = 1 << 30
WRITE_BEHIND_BYTES = 256 << 20
USES_PER_SAVE = 256


@dataclass(frozen=True)
class StoreStat:
    """Counts since the store was opened, and what the tiers held when they last looked."""

    tiers: Mapping[str, TierUsage]
    """By name, fastest first."""
    blocks: int
    """Different blocks that can be found."""
    lookups: int
    """How often `match` was asked."""
    lookup_tokens: int
    """Tokens that `match` was asked for."""
    match_tokens: int
    """Tokens that `match` found."""
    hits: int
    """Blocks that were opened."""
    hit_tokens: int
    """Tokens that were wanted of them."""
    misses: int
    """Blocks that were asked for and could not be had."""
    corrupt: int
    """Damaged blocks that were met and put out of use."""
    lost: int
    """Blocks whose tier broke off before their end; they were computed again."""
    puts: int
    """Blocks that became durable in the last local tier, written synchronously or behind."""
    put_bytes: int
    evicted: int
    """Blocks that tiers gave up for room."""
    dropped: int
    """Times a block found no room in a tier it was meant for, or in the queue to it."""
    failed: int
    """Times a tier could not be used; each was survived as a miss or a block that is not stored."""
    not_worth_writing: int
    """Times a block was not written to a tier because no use would have repaid it there."""
    queued_bytes: int
    """Bytes that wait to be written behind."""
    bytes_per_s: Mapping[str, float] = field(default_factory=dict)
    """How fast each tier gave lately, of those that were read from."""
    delivered: Mapping[str, int] = field(default_factory=dict)
    """Bytes that were delivered against a deadline, by the codec they came in or were asked for."""
    errors: Mapping[str, int] = field(default_factory=dict)
    """By tier: times that it could not be used, and damaged or lost blocks that it gave."""
    open_circuits: tuple[str, ...] = ()
    """Tiers that are not asked for a while, after failures."""


@dataclass(frozen=True)
class ScrubReport:
    """What reading everything found."""

    blocks: int
    size_bytes: int
    corrupt: tuple[BlockKey, ...]
    """Damaged blocks, now out of use."""


class Store:
    """Blocks in `tiers`, fastest first; the last one is durable.

    Safe from several threads.  Owns the tiers: `close` closes them.  Its parts do the rest: `index` lists
    blocks and their changes, `tenancy` holds quotas and pins, `tiers` names the tiers, `links` their speed,
    and `queues` hold what is to be written.
    """

    def __init__(
        self,
        tiers: Sequence[ManagedTier],
        *,
        far: Sequence[ManagedTier] = (),
        clock: Clock | None = None,
        trace: Trace | None = None,
        write_behind_bytes: int = WRITE_BEHIND_BYTES,
        quotas: Quotas | None = None,
        persistent_pins: PersistentPins | None = None,
        limits: TenantsLimits | None = None,
        worth_writing: WorthWriting | None = None,
    ) -> None:
        """`far` are the tiers across a network: read last, written behind, never waited for.

        `worth_writing` is asked before a block is written behind to a tier of that name.
        """
        clock, trace = clock or SystemClock(), trace or NoTrace()
        self.tiers = Tiers(tiers, far)
        self.links = Links(clock)
        self.tenancy = Tenancy(
            quotas or Quotas(),
            limits or TenantsLimits(None, clock),
            persistent_pins or PersistentPins(None, clock),
            trace,
        )
        self._outcomes = Outcomes(trace)
        self.queues = WriteQueues(far, write_behind_bytes)
        self.index = FollowedIndex(self.tiers, self._outcomes, clock)
        self._writer = Writer(
            self.tiers,
            self.queues,
            self.tenancy,
            worth_writing,
            self.index,
            self._outcomes,
        )
        self._loads = Loads(
            self.tiers,
            self.index,
            self._outcomes,
            self.links,
            on_whole=self._writer.promote,
            finish=self._writer.finish,
        )

    # --- reading ---

    def match(
        self,
        fingerprint: Fingerprint,
        recipe: Recipe,
        salt: str,
        token_ids: Sequence[int],
        start: int = 0,
        *,
        or_exact: bool = False,
    ) -> Match:
        """The longest run of `token_ids` from position `start` on that is stored for that model and
        recipe, under that salt or the public one. With `or_exact` exact blocks may be part of it.

        Moves no bytes. A block may be gone by the time it is opened, unless it is pinned.
        """
        recipes = (EXACT, recipe) if or_exact else (recipe,)  # exact first: it wins where equal
        families = [Family(fingerprint, one, own) for one in recipes for own in (salt, PUBLIC_SALT)]
        match = self.index.match(families, token_ids, start)
        tokens = {"lookup_tokens": len(token_ids) - start, "match_tokens": match.num_tokens}
        self._outcomes.count(lookups=1, **tokens)
        return match

    def find_content(self, content_id: ContentId) -> tuple[BlockId, ...]:
        """Every stored block of that text: each model, recipe and place it was computed at."""
        return self.index.find_content(content_id)

    def open(self, what: BlockHit | BlockId, delivery: Delivery | None = None) -> Reader | None:
        """The block, pinned and open for reading, or None: a counted miss.

        With a `delivery` what comes from a node may come in another encoding, as that chooses.
        """
        hit = what if isinstance(what, BlockHit) else BlockHit(what, what.num_tokens, "")
        key = hit.id.key
        self.tenancy.pins.hold(key)
        shared = self._loads.enter(key)
        if shared is None:
            self.index.refresh()  # another process may have brought it since
            shared = self._loads.enter(key)
        if shared is None:
            self.tenancy.pins.release(key)
            self._outcomes.missed(key, hit.num_tokens)
            return None
        if self._outcomes.hit(key, hit.num_tokens, shared.tier) % USES_PER_SAVE == 0:
            self.queues.later(0, self._save_uses)
        tier, durable = self.tiers.named(shared.tier), self.tiers.durable
        if tier is not durable:
            # or what is always read from memory would look unused on the disk, and go first
            durable.touch(key)
        load: Load = shared
        if delivery is not None and tier.transcoder is not None:
            on_lost = partial(self.index.quarantine, tier, key)  # a lost one is only counted
            load = DeliveredLoad(shared, tier.transcoder, delivery, on_lost)
        return Reader(load, hit.num_tokens, partial(self._leave, key, shared))

    def note_delivered(self, key: BlockKey, first: int, last: int, level: str, size: int) -> None:
        """Layers came, or were sent, at a level: counted, and in the trace."""
        self._outcomes.delivered(key, first, last, level, size)

    # --- writing ---

    def put(self, block: Block, codec: Codec | None = None) -> None:
        """Store `block`; returns once the durable tier has it.

        Raises NoSpace (counted, nothing half-written is left) or StoreError when it cannot be stored.
        """
        self._writer.put(block, codec)

    def put_encoded(self, encoded: EncodedBlock) -> None:
        """Store a block that comes in its stored form and was checked whole. Raises as `put`."""
        self._writer.put_encoded(encoded)

    def write_behind(self, block: Block, codec: Codec | None = None) -> None:
        """Store `block` in the fastest tier immediately, in the durable one soon. Promises nothing.

        It can be matched when this returns.  When too much waits already it stays in the fastest tier
        only, and that is counted.
        """
        self._writer.write_behind(block, codec)

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait for what is being written behind; False when that took longer than `timeout_s`."""
        return self.queues.flush(timeout_s)

    def replace(self, block: EncodedBlock) -> None:
        """Write a block again wherever this machine holds it. Raises NoSpace, StoreError."""
        self._writer.replace(block)

    def drop(self, key: BlockKey) -> bool:
        """Remove a block from every tier; False when none had it. Open readers read on.

        What waits to be written of it is given up, and a write that has begun is waited for.
        """
        return self._writer.drop(key)

    def clear(self) -> None:
        """Remove every block, also those that wait to be written. Open readers read on."""
        self._writer.clear()

    # --- looking after it ---

    def stat(self) -> StoreStat:
        """What was done since opening, and what was held at the last look: `index.refresh` looks again.

        Comes from memory: it waits for no disk, network or other process.
        """
        tiers = {tier.name: tier.usage() for tier in self.tiers}
        return StoreStat(
            tiers=tiers,
            blocks=len(self.index),
            evicted=sum(usage.evicted for usage in tiers.values()),
            queued_bytes=self.queues.size_bytes,
            bytes_per_s=self.links.all(),
            delivered=self._outcomes.delivered_bytes(),
            errors=dict(self._outcomes.errors),
            open_circuits=tuple(tier.name for tier in self.tiers if not tier.is_reachable()),
            **self._outcomes.counts(),
        )

    def verify(self, keys: Iterable[BlockKey] | None = None) -> ScrubReport:
        """Read and verify these blocks of the durable tier, or all; damaged ones are put out of use."""
        blocks, size_bytes, corrupt = 0, 0, list[BlockKey]()
        for key in list(self.tiers.durable.block_keys()) if keys is None else keys:
            found = self._loads.scrub(self.tiers.durable, key)
            if found is None:
                corrupt.append(key)
            blocks, size_bytes = blocks + 1, size_bytes + (found or 0)
        self.index.refresh()
        return ScrubReport(blocks, size_bytes, tuple(corrupt))

    def check(self) -> None:
        """Audit the store once what is being written behind is written. Raises AssertionError."""
        self.flush()
        self.index.check()
        self._loads.check()

    def close(self, timeout_s: float = 60.0) -> None:
        """Write what waits (for at most `timeout_s`) and give everything back."""
        self.flush(timeout_s)
        self.queues.cancel_all()
        for tier in self.tiers:
            tier.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _leave(self, key: BlockKey, load: StoreLoad) -> None:
        self._loads.leave(key, load)
        self.tenancy.pins.release(key)

    def _save_uses(self) -> None:
        for tier in self.tiers:
            with self._outcomes.survived(tier):
                tier.save()
