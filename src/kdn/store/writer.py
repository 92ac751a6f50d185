"""How blocks get into the tiers and out of them: durable when the call returns, or best effort, write-behind.

put           the durable tier of this machine; then the faster ones
write_behind  the fastest tier immediately, the durable one from a queue
promote       what a reader brought whole: into the fastest tier, and from far on to the disk
              in each case the far tiers follow, each from a queue of its own (`WriteQueues`)
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from kdn.core import BlockKey
from kdn.errors import CorruptBlock, NoSpace, StoreError
from kdn.machine.memory import make_ready
from kdn.machine.threads import Task, WriteBehind
from kdn.store.block.format import Block, EncodedBlock, encode_block
from kdn.store.block.reader import StoreLoad
from kdn.store.codecs import Codec, NoCodec
from kdn.store.index.followed import FollowedIndex
from kdn.store.tenants.tenancy import Tenancy
from kdn.store.tiers.tier import ManagedTier, Outcomes, Tier, Tiers

__all__ = ["WorthWriting", "WriteQueues", "Writer"]

WorthWriting = Callable[[str, int, int, int], bool]
"""Is a block worth writing to the tier of that name, by its start, its tokens and its bytes?"""
_NO_CODEC = NoCodec()
"""Writes the blocks that come without a codec."""
_FULL = "too much waits to be written"
_READY_SHARE = 8
"""The part of the memory tier whose pages are made ahead."""


class Writer:
    """Puts blocks into `tiers`, and takes them out. Safe from several threads."""

    def __init__(
        self,
        tiers: Tiers,
        queues: WriteQueues,
        tenancy: Tenancy,
        worth_writing: WorthWriting | None,
        index: FollowedIndex,
        outcomes: Outcomes,
    ) -> None:
        """`worth_writing` None writes all of them."""
        self._tiers = tiers
        self._queues = queues
        self._tenancy = tenancy
        self._worth_writing = worth_writing
        self._index = index
        self._outcomes = outcomes

    # --- durable when the call returns ---

    def put(self, block: Block, codec: Codec | None) -> None:
        """Store `block`; returns once it is durable. Raises NoSpace, StoreError."""
        if not self._used_durable(block.id.key):
            self._store(encode_block(block, codec or _NO_CODEC))

    def put_encoded(self, encoded: EncodedBlock) -> None:
        """Store a block that comes in its stored form and was checked whole. Raises as `put`."""
        if not self._used_durable(encoded.key):
            self._store(encoded)

    def replace(self, block: EncodedBlock) -> None:
        """Write a block again wherever this machine holds it. Raises NoSpace, StoreError."""
        for tier in self._tiers.local:
            if tier.holds(block.key):
                tier.replace(block, self._tenancy.spares)
        self._index.refresh()

    def drop(self, key: BlockKey) -> bool:
        """Remove a block from every tier; False when none had it. A far tier that fails is counted.

        The slowest tier goes first: what a reader brings up from it meanwhile goes with the quicker ones.
        Raises StoreError when a tier of this machine cannot be used.
        """
        _refuse_read_only(self._tiers.local)  # before a far tier, which others share, lost anything
        held = []
        with self._queues.dropping(key):
            self._queues.forget(key)
            for tier in self._tiers.far:
                with self._outcomes.survived(tier):
                    held.append(tier.drop(key))
            self._queues.forget(key)
            held += [tier.drop(key) for tier in reversed(self._tiers.local)]
        if any(held):
            self._outcomes.removed(key)
        self._index.refresh()  # from now on no tier says that it holds the block
        if self._tiers.fastest.drop(key):  # a reader brought it up before
            self._index.refresh()
        return any(held)

    def clear(self) -> None:
        """Remove every block, also those that wait to be written. Raises as `drop`."""
        _refuse_read_only(self._tiers.local)
        with self._queues.dropping(None):
            self._queues.cancel_all()
            for tier in self._tiers.far:
                for key in (*tier.block_keys(), *tier.coming_keys()):
                    with self._outcomes.survived(tier):
                        tier.drop(key)
            self._queues.cancel_all()
            for tier in (*reversed(self._tiers.local), self._tiers.fastest):
                for key in list(tier.block_keys()):
                    tier.drop(key)
                self._index.refresh()

    # --- best effort ---

    def write_behind(self, block: Block, codec: Codec | None) -> None:
        """Store `block` in the fastest tier immediately, in the durable one soon. Promises nothing."""
        key = block.id.key
        if self._used_durable(key) or self._queues.waits(self._tiers.durable, key):
            return
        codec = codec or _NO_CODEC
        if codec.compresses:
            self._queue_encoding(block, codec)
            return
        encoded = encode_block(block, codec)
        self._put_best_effort(self._tiers.fastest, encoded)
        if len(self._tiers.local) > 1:
            self._queue(encoded.key, encoded.size_bytes, partial(self._write_durable, encoded))
        self._send_far(encoded)
        self._make_ready()

    def promote(self, tier: Tier, block: EncodedBlock) -> None:
        """To memory immediately; what came from far also to the disk, when there is time.

        What was dropped while it was read stays dropped: `tier` does not hold it any more.
        """

        def put(target: ManagedTier) -> None:
            if not tier.holds(block.key):
                return
            self._put_best_effort(target, block)
            if not tier.holds(block.key) and target.drop(block.key):
                self._index.refresh()

        put(self._tiers.fastest)
        if tier.far and len(self._tiers.local) > 1:
            durable = self._tiers.durable
            self._queues.add(durable, block.key, block.size_bytes, partial(put, durable))

    def finish(self, load: StoreLoad) -> bool:
        """Bring the rest of a load that its readers gave up, for the next one. False: nobody takes it."""
        return self._queues.later(load.header.size_bytes, load.finish)

    # --- inside ---

    def _store(self, encoded: EncodedBlock) -> None:
        try:
            self._put_durable(encoded)
        finally:
            self._index.refresh()
        for tier in self._tiers.local[:-1]:
            self._put_best_effort(tier, encoded)
        self._send_far(encoded)

    def _make_ready(self) -> None:
        """Blocks to come find their memory made while nothing else was to do."""
        held = self._tiers.fastest.usage()
        if self._tiers.fastest.trusted and (most := held.capacity_bytes) is not None:
            self._queues.make_ready(min(most - held.size_bytes, most // _READY_SHARE))

    def _queue(self, key: BlockKey, size_bytes: int, task: Task) -> None:
        if not self._queues.add(self._tiers.durable, key, size_bytes, task):
            self._outcomes.dropped(key, "queue", _FULL)

    def _queue_encoding(self, block: Block, codec: Codec) -> None:
        """Codecs take longer than the caller may wait.

        Without loss, memory has the block as it is meanwhile.  With loss no tier has it until it went
        through the codec: every tier is to give the same bytes.
        """
        if codec.lossless:
            self._put_best_effort(self._tiers.fastest, encode_block(block))
        self._queue(block.id.key, block.raw_bytes, partial(self._encode, block.copy(), codec))

    def _encode(self, block: Block, codec: Codec) -> None:
        encoded = encode_block(block, codec)
        if not codec.lossless:
            self._put_best_effort(self._tiers.fastest, encoded)
        if len(self._tiers.local) > 1:
            self._write_durable(encoded)
        self._send_far(encoded)

    def _write_durable(self, block: EncodedBlock) -> None:
        if self._is_worth_writing(self._tiers.durable, block):
            with suppress(StoreError):  # counted where it was raised
                self._put_durable(block)
        self._index.refresh()

    def _send_far(self, block: EncodedBlock) -> None:
        """To the far tiers, when their turn comes."""
        for tier in self._tiers.far:
            if not self._is_worth_writing(tier, block):
                continue
            put = partial(self._put_best_effort, tier, block)
            if not tier.is_reachable():
                self._outcomes.dropped(block.key, tier.name, "the tier's circuit is open")
            elif not self._queues.add(tier, block.key, block.size_bytes, put):
                self._outcomes.dropped(block.key, tier.name, _FULL)

    def _is_worth_writing(self, tier: Tier, block: EncodedBlock) -> bool:
        """Would its uses repay storing the block there, as far as prices are known?"""
        name = block.header.id
        if self._worth_writing is None or self._worth_writing(
            tier.name, name.start, name.num_tokens, block.size_bytes
        ):
            return True
        self._outcomes.not_worth_writing(tier, block.key)
        return False

    def _used_durable(self, key: BlockKey) -> bool:
        """Count a use of a block that the durable tier has; False where it has none that is whole."""
        durable = self._tiers.durable
        try:
            handle = durable.open(key)
        except CorruptBlock as error:
            self._index.quarantine(durable, key, error)
            return False
        if handle is None:
            return False
        handle.close()
        durable.touch(key)
        return True

    def _put_durable(self, block: EncodedBlock) -> None:
        durable = self._tiers.durable
        try:
            self._tenancy.put_into(durable, block)
        except NoSpace as error:
            self._outcomes.dropped(block.key, durable.name, str(error))
            raise
        except StoreError as error:
            self._outcomes.failed(durable, error)
            raise
        self._outcomes.put(durable, block.key, block.size_bytes)

    def _put_best_effort(self, tier: ManagedTier, block: EncodedBlock) -> None:
        """Into a tier that need not have it."""
        with self._outcomes.survived(tier):
            try:
                self._tenancy.put_into(tier, block)
            except NoSpace as error:
                self._outcomes.dropped(block.key, tier.name, str(error))
        self._index.refresh()


def _refuse_read_only(tiers: Sequence[ManagedTier]) -> None:
    if why := next((tier.read_only for tier in tiers if tier.read_only), None):
        raise NoSpace(why)


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
    """One queue for the tiers of this machine and one for each far tier, `capacity_bytes` each. A block that
    is dropped meanwhile is not written, neither from a queue nor by a caller that carries it."""

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
