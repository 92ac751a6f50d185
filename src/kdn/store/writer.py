"""How blocks get into the tiers: durable at once, or gladly and behind.

put         the last tier of this machine, for good; then the faster ones
write_behind  the first tier at once, the last one from a queue
promote     what a reader brought whole: into the first tier, and from afar on to the disk
            in each case the tiers across the network follow, each from a queue of its own
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from kdn.core import BlockKey
from kdn.errors import CorruptBlock, NoSpace, StoreError
from kdn.store.block.block import Block
from kdn.store.block.format import EncodedBlock, encode_block
from kdn.store.block.reader import StoreLoad
from kdn.store.codecs import Codec
from kdn.store.failures import Failures
from kdn.store.stat import Counts
from kdn.store.tenants.tenancy import Tenancy
from kdn.store.tiers.tier import Tier
from kdn.store.write_behind import WriteBehind
from kdn.trace import Trace

__all__ = ["WorthWriting", "Writer"]

WorthWriting = Callable[[str, int, int, int], bool]
"""Is a block worth writing to the tier of that name, by its start, its tokens and its bytes?"""
_FULL = "too much waits to be written"


class Writer:
    """Puts blocks into `local` tiers (fastest first, the last one lasts) and into `far` ones.

    `follow` is called whenever a tier may have changed; `on_corrupt` when the last tier's own copy
    turns out to be damaged.  Safe from several threads.
    """

    def __init__(
        self,
        local: Sequence[Tier],
        far: Sequence[Tier],
        codec: Codec,
        write_behind_bytes: int,
        tenancy: Tenancy,
        worth_writing: WorthWriting | None,
        counts: Counts,
        failures: Failures,
        trace: Trace,
        *,
        follow: Callable[[], None],
        on_corrupt: Callable[[Tier, BlockKey, CorruptBlock], None],
    ) -> None:
        """At most `write_behind_bytes` wait in each queue."""
        self._local = tuple(local)
        self._first = (*local, *far)[0]
        self._beyond = tuple((tier, WriteBehind(write_behind_bytes)) for tier in far)
        self._behind = WriteBehind(write_behind_bytes)
        self._codec = codec
        self._tenancy = tenancy
        self._worth_writing = worth_writing
        self._counts = counts
        self._failures = failures
        self._trace = trace
        self._follow = follow
        self._on_corrupt = on_corrupt
        self._lock = threading.Lock()
        self._queued: set[BlockKey] = set()

    # --- at once ---

    def put(self, block: Block, codec: Codec | None) -> None:
        """Keep `block`; returns once the last tier has it for good. Raises NoSpace, StoreError."""
        if self._is_lasting(block.id.key):
            return
        self._keep(encode_block(block, codec or self._codec))

    def put_encoded(self, encoded: EncodedBlock) -> None:
        """Keep a block that comes in its stored form and was checked whole. Raises as `put`."""
        if self._is_lasting(encoded.key):
            return
        self._keep(encoded)

    def _keep(self, encoded: EncodedBlock) -> None:
        try:
            self._put_last(encoded)
        finally:
            self._follow()
        for tier in self._local[:-1]:
            self._put_gladly(tier, encoded)
        self._follow()
        self._send(encoded)

    # --- behind ---

    def write_behind(self, block: Block, codec: Codec | None) -> None:
        """Keep `block` in the first tier at once, in the last one soon. Promises nothing."""
        key = block.id.key
        if self._is_lasting(key) or key in self._queued:
            return
        codec = codec or self._codec
        if codec.compresses:
            self._queue_encoding(block, codec)
            return
        encoded = encode_block(block, codec)
        self._put_gladly(self._first, encoded)
        self._follow()
        if len(self._local) > 1:
            self._queue(encoded.key, encoded.size_bytes, partial(self._write_behind, encoded))
        self._send(encoded)

    def promote(self, tier: Tier, block: EncodedBlock) -> None:
        """To memory at once; what came from afar also to the disk, when there is time."""
        self._put_gladly(self._first, block)
        self._follow()
        if tier.far and len(self._local) > 1:
            self.later(block.size_bytes, partial(self._settle, block))

    def finish(self, load: StoreLoad) -> bool:
        """Bring the rest of a load that was broken off, for the next one who asks. False: it is not
        taken over."""
        return self.later(load.header.size_bytes, partial(_finish_now, load))

    def later(self, size_bytes: int, chore: Callable[[], object]) -> bool:
        """Do something when there is time; False when too much waits already."""
        return self._behind.offer(size_bytes, chore)

    # --- what waits ---

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait to be written."""
        return self._behind.size_bytes + sum(queue.size_bytes for _, queue in self._beyond)

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait for what is being written behind; False when that took longer than `timeout_s`."""
        done = self._behind.flush(timeout_s)
        return all([done, *(queue.flush(timeout_s) for _, queue in self._beyond)])

    def forget(self, key: BlockKey) -> None:
        """Do not write the block if it still waits."""
        with self._lock:
            self._queued.discard(key)

    def forget_all(self) -> None:
        """Give up what waits to be written."""
        for queue in (self._behind, *(queue for _, queue in self._beyond)):
            queue.forget()
            queue.flush()
        with self._lock:
            self._queued.clear()

    # --- inside ---

    def _queue(self, key: BlockKey, size_bytes: int, chore: Callable[[], object]) -> None:
        with self._lock:
            self._queued.add(key)
        if not self.later(size_bytes, chore):
            self.forget(key)
            self._failures.dropped(key, "queue", _FULL)

    def _queue_encoding(self, block: Block, codec: Codec) -> None:
        """Codecs take longer than the caller may wait.

        Without loss, memory has the block as it is meanwhile.  With loss nobody has it until it went
        through the codec: every tier is to give the same bytes.
        """
        if codec.lossless:
            self._put_gladly(self._first, encode_block(block))
            self._follow()
        self._queue(block.id.key, block.raw_bytes, partial(self._encode, block.copy(), codec))

    def _encode(self, block: Block, codec: Codec) -> None:
        if block.id.key not in self._queued:
            return  # dropped meanwhile
        encoded = encode_block(block, codec)
        if not codec.lossless:
            self._put_gladly(self._first, encoded)
        if len(self._local) > 1:
            self._write_behind(encoded)
        self.forget(encoded.key)
        self._follow()
        self._send(encoded)

    def _write_behind(self, block: EncodedBlock) -> None:
        if block.key not in self._queued:
            return  # dropped meanwhile
        if self._is_worth_writing(self._local[-1], block):
            with suppress(StoreError):  # counted where it was raised
                self._put_last(block)
        self.forget(block.key)
        self._follow()

    def _settle(self, block: EncodedBlock) -> None:
        self._put_gladly(self._local[-1], block)
        self._follow()

    def _send(self, block: EncodedBlock) -> None:
        """To the tiers across the network, when their turn comes."""
        for tier, queue in self._beyond:
            if not self._is_worth_writing(tier, block):
                continue
            if not tier.reachable():
                self._failures.dropped(block.key, tier.name, "the tier is given a rest")
            elif not queue.offer(block.size_bytes, partial(self._put_far, tier, block)):
                self._failures.dropped(block.key, tier.name, _FULL)

    def _put_far(self, tier: Tier, block: EncodedBlock) -> None:
        self._put_gladly(tier, block)
        self._follow()

    def _is_worth_writing(self, tier: Tier, block: EncodedBlock) -> bool:
        """Does it pay to keep the block there, as far as anybody says?"""
        name = block.header.id
        if self._worth_writing is None or self._worth_writing(
            tier.name, name.start, name.num_tokens, block.size_bytes
        ):
            return True
        self._counts.add(not_worth_writing=1)
        self._trace.event("store.not_worth_writing", tier=tier.name, key=block.key)
        return False

    def _is_lasting(self, key: BlockKey) -> bool:
        """Does the last tier have the block for good? Counts as a use if so."""
        last = self._local[-1]
        try:
            handle = last.open(key)
        except CorruptBlock as error:
            self._on_corrupt(last, key, error)
            return False
        if handle is None:
            return False
        handle.close()
        last.touch(key)
        return True

    def _put_last(self, block: EncodedBlock) -> None:
        last = self._local[-1]
        try:
            self._tenancy.put_into(last, block)
        except NoSpace as error:
            self._failures.dropped(block.key, last.name, str(error))
            raise
        except StoreError as error:
            self._failures.failed(last, error)
            raise
        self._counts.add(puts=1, put_bytes=block.size_bytes)
        self._trace.event("store.put", tier=last.name, key=block.key, size_bytes=block.size_bytes)

    def _put_gladly(self, tier: Tier, block: EncodedBlock) -> None:
        """Into a tier that need not have it."""
        try:
            self._tenancy.put_into(tier, block)
        except NoSpace as error:
            self._failures.dropped(block.key, tier.name, str(error))
        except StoreError as error:
            self._failures.failed(tier, error)


def _finish_now(load: StoreLoad) -> None:
    with suppress(CorruptBlock):  # counted where it was met
        load.layers(0, load.header.shape.num_layers)
    load.close()
