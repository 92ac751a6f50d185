"""Where a written block ends up, when, and what is counted when it does not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import Event, Thread

import pytest

from kdn.clock import ManualClock, SystemClock
from kdn.core import BlockKey, Cause, Recipe
from kdn.errors import NoSpace, StoreError
from kdn.store import (
    CODECS,
    EncodedBlock,
    Quotas,
    RemoteCallSettings,
    RemoteSettings,
    RemoteTier,
    Store,
    encode_block,
)
from kdn.store.tiers.memory import MemoryTier
from kdn.store.tiers.remote.uploads import Uploads
from kdn.store.tiers.tier import Spare
from kdn.trace import NoTrace, Recorder
from tests.store.helpers import block_id, make_block
from tests.store.twins import DictRemote

LOSSY = Recipe((Cause.CODEC,), "int8")
IDS = [block_id([number] * 64) for number in range(4)]
BLOCKS = [make_block(one) for one in IDS]
SIZE = encode_block(BLOCKS[0]).size_bytes


class Durable(MemoryTier):
    """A memory tier that stands for the disk: it can be made to fail, or to wait."""

    name = "durable"

    def __init__(self, capacity_bytes: int = 10**6) -> None:
        super().__init__(capacity_bytes, NoTrace())
        self.fails = False
        self.gate = Event()
        self.gate.set()

    def put(self, block: EncodedBlock, spare: Spare) -> None:
        assert self.gate.wait(60)
        if self.fails:
            raise StoreError("the device is gone")
        super().put(block, spare)


def opened(durable: Durable, **options: object) -> Store:
    fast = MemoryTier(10**6, NoTrace())
    return Store([fast, durable], clock=ManualClock(), **options)  # type: ignore[arg-type]


def test_a_put_that_fails_raises_and_reaches_no_tier() -> None:
    durable = Durable()
    with opened(durable) as store:
        durable.fails = True
        with pytest.raises(StoreError, match="the device is gone"):
            store.put(BLOCKS[0])
        assert store.tiers.where(IDS[0].key) == ()
        assert (store.stat().failed, store.stat().puts) == (1, 0)


def test_without_room_the_put_is_refused_and_counted() -> None:
    with opened(Durable(SIZE - 1)) as store:
        with pytest.raises(NoSpace, match=f"a block of {SIZE} bytes does not fit"):
            store.put(BLOCKS[0])
        assert store.stat().dropped == 1
        assert len(store.index) == 0


def test_written_behind_a_block_is_found_before_it_is_durable() -> None:
    durable = Durable()
    with opened(durable) as store:
        durable.gate.clear()
        store.write_behind(BLOCKS[0])
        store.write_behind(BLOCKS[0])
        assert store.tiers.where(IDS[0].key) == ("memory",)
        assert store.stat().queued_bytes == SIZE, "twice is once"
        durable.gate.set()
        assert store.flush(60)
        assert store.tiers.where(IDS[0].key) == ("memory", "durable")
        assert (store.stat().puts, store.stat().put_bytes) == (1, SIZE)


def test_what_finds_no_room_in_the_queue_stays_in_memory_and_is_counted() -> None:
    durable, trace = Durable(), Recorder()
    with opened(durable, write_behind_bytes=2 * SIZE, trace=trace) as store:
        durable.gate.clear()
        for block in BLOCKS[:3]:
            store.write_behind(block)
        assert store.stat().dropped == 1
        assert [event.fields["tier"] for event in trace.events("store.refuse")] == ["queue"]
        durable.gate.set()
        assert store.flush(60)
        where = [store.tiers.where(one.key) for one in IDS[:3]]
        assert where == [("memory", "durable")] * 2 + [("memory",)]


def test_a_lossy_block_is_in_no_tier_before_it_went_through_its_codec() -> None:
    """A lossless one is in memory as it is meanwhile, and durable in its packed form."""
    lossy = make_block(block_id([9] * 64, recipe=LOSSY))
    for block, codec, at_first in [(lossy, "int8", ()), (BLOCKS[0], "lossless", ("memory",))]:
        durable = Durable()
        with opened(durable) as store:
            held = Event()
            store.queues.later(0, partial(held.wait, 60))
            store.write_behind(block, CODECS[codec])
            assert store.tiers.where(block.id.key) == at_first
            held.set()
            assert store.flush(60)
            assert store.tiers.where(block.id.key) == ("memory", "durable")
            handle = durable.open(block.id.key)
            assert handle is not None
            assert handle.header is not None
            assert handle.header.codec == codec


@pytest.mark.parametrize("act", [Store.put, Store.write_behind])
def test_far_tiers_take_what_is_worth_it(act: Callable[..., None]) -> None:
    """A price by tier: "dict" takes blocks of at most 32 tokens, the disk takes all."""
    remote, clock = DictRemote(), ManualClock()
    far = RemoteTier(remote, RemoteSettings(poll_s=0), clock, NoTrace())
    small = make_block(block_id([7] * 32))

    def worth_writing(tier: str, start: int, num_tokens: int, size_bytes: int) -> bool:
        assert start == 0
        assert size_bytes >= 8192
        return tier != "dict" or num_tokens <= 32

    with opened(Durable(), far=[far], worth_writing=worth_writing) as store:
        for block in (BLOCKS[0], small):
            act(store, block)
        assert store.flush(60)
        assert store.tiers.where(IDS[0].key) == ("memory", "durable")
        assert store.tiers.where(small.id.key) == ("memory", "durable", "dict")
        assert store.stat().not_worth_writing == 1


def test_a_damaged_durable_copy_is_written_again() -> None:
    durable = Durable()
    with opened(durable) as store:
        store.put(BLOCKS[0])
        assert durable.drop(IDS[0].key)
        store.put(BLOCKS[0])
        assert store.stat().puts == 2
        store.put(BLOCKS[0])
        assert store.stat().puts == 2, "it is durable: nothing to do"


class HeldRemote(DictRemote):
    """Says when a write begins, and takes it when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.may_write = Event(), Event()

    def write(self, key: BlockKey, note: bytes, data: memoryview) -> None:
        self.begun.set()
        assert self.may_write.wait(60)
        super().write(key, note, data)


def test_a_quota_makes_nobody_wait_for_a_far_tier() -> None:
    """The first block waits for the network; the second is in memory and durable meanwhile."""
    remote, clock = HeldRemote(), ManualClock()
    settings = RemoteSettings(RemoteCallSettings(timeout_s=60, attempts=1))
    far = RemoteTier(remote, settings, clock, NoTrace())
    with opened(Durable(), far=[far], quotas=Quotas(10**9)) as store:
        store.write_behind(BLOCKS[0])
        assert remote.begun.wait(60)
        second = Thread(target=store.put, args=[BLOCKS[1]])
        second.start()
        second.join(20)
        where = store.tiers.where(IDS[1].key)
        remote.may_write.set()
        second.join()
        assert where == ("memory", "durable")
        assert store.flush(60)
        assert store.tiers.where(IDS[1].key) == ("memory", "durable", "dict")


class SlowToDrop(DictRemote):
    """Removes a block when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.may_drop = Event(), Event()

    def remove(self, key: BlockKey) -> bool:
        self.begun.set()
        assert self.may_drop.wait(60)
        return super().remove(key)


class DroppedMeanwhile(MemoryTier):
    """Another thread drops all while a block is put here."""

    drop_all: Callable[[], object] | None = None

    def put(self, block: EncodedBlock, spare: Spare) -> None:
        if self.drop_all is not None:
            dropping = Thread(target=self.drop_all)
            dropping.start()
            dropping.join()
        super().put(block, spare)


class ReadOnly(Durable):
    read_only = "the folder is read-only"


def far_over(remote: DictRemote) -> RemoteTier:
    patient = RemoteCallSettings(timeout_s=60, attempts=1)
    return RemoteTier(remote, RemoteSettings(patient, poll_s=0), ManualClock(), NoTrace())


def with_far(remote: DictRemote) -> Store:
    return opened(Durable(), far=[far_over(remote)])


def is_read(store: Store, number: int) -> bool:
    reader = store.open(IDS[number])
    if reader is None:
        return False
    with reader:
        reader.layers(0, 3)
    return True


@pytest.mark.parametrize("act", [Store.put, Store.write_behind])
def test_what_is_dropped_while_it_waits_for_a_far_tier_is_not_written_there(
    act: Callable[..., None],
) -> None:
    with with_far(DictRemote()) as store:
        store.queues.give_way(lambda: False)
        for block in BLOCKS[:2]:
            act(store, block)
            assert store.drop(block.id.key)
        act(store, BLOCKS[1])
        assert store.flush(60)
        assert store.tiers.where(IDS[0].key) == ()
        assert store.tiers.where(IDS[1].key) == ("memory", "durable", "dict"), "it was put again"


def test_a_drop_waits_for_a_far_write_that_has_begun() -> None:
    remote = HeldRemote()
    with with_far(remote) as store:
        store.write_behind(BLOCKS[0])
        assert remote.begun.wait(60)
        dropping = Thread(target=store.drop, args=[IDS[0].key])
        dropping.start()
        remote.may_write.set()
        dropping.join()
        assert store.flush(60)
        assert store.tiers.where(IDS[0].key) == ()


class LateRemote(HeldRemote):
    """Says when a block went that was there."""

    def __init__(self) -> None:
        super().__init__()
        self.gone = Event()

    def remove(self, key: BlockKey) -> bool:
        was_there = super().remove(key)
        if was_there:
            self.gone.set()
        return was_there


@pytest.mark.parametrize("act", ["drop", "clear"])
def test_a_write_that_ends_after_its_block_was_dropped_leaves_none(act: str) -> None:
    """Its caller gave up waiting after 50 ms."""
    remote, hasty = LateRemote(), RemoteCallSettings(timeout_s=0.05, attempts=1, workers=1)
    far = RemoteTier(remote, RemoteSettings(hasty, poll_s=0), SystemClock(), NoTrace())
    with opened(Durable(), far=[far]) as store:
        store.write_behind(BLOCKS[0])
        assert store.flush(60)
        assert (store.stat().failed, store.tiers.where(IDS[0].key)) == (1, ("memory", "durable"))
        store.clear() if act == "clear" else store.drop(IDS[0].key)
        remote.may_write.set()
        assert remote.gone.wait(60)


def upload(uploads: Uploads) -> None:
    with uploads.wanted(IDS[0].key):
        uploads.write(IDS[0].key, b"note", memoryview(b"block"))


def test_a_write_that_ends_after_its_block_was_dropped_and_put_again_leaves_it() -> None:
    remote = HeldRemote()
    uploads = Uploads(remote)
    writing = Thread(target=upload, args=[uploads])
    writing.start()
    assert remote.begun.wait(60)
    with uploads.unwanted(IDS[0].key):
        pass
    with uploads.wanted(IDS[0].key):
        remote.may_write.set()
    writing.join()
    assert remote.head(IDS[0].key, 9) == (b"block", 5)
    assert uploads.keys() == []


class AskedAgain(HeldRemote):
    """Its block is put again while it is removed: once the removal begins, and before it is done."""

    def __init__(self) -> None:
        super().__init__()
        self.again: Thread | None = None

    def remove(self, key: BlockKey) -> bool:
        if self.again is not None:
            self.again.start()
            self.again.join(0.3)  # it waits for the removal, or it would have ended long ago
        return super().remove(key)


@pytest.mark.parametrize("remover", ["an older write", "a drop"])
def test_a_removal_that_is_late_leaves_what_was_put_since(remover: str) -> None:
    remote = AskedAgain()
    uploads = Uploads(remote)
    remote.again = Thread(target=upload, args=[uploads])
    if remover == "a drop":
        remote.may_write.set()
        with uploads.unwanted(IDS[0].key):
            uploads.remove(IDS[0].key)
    else:
        older = Thread(target=upload, args=[uploads])
        older.start()
        assert remote.begun.wait(60)
        with uploads.unwanted(IDS[0].key):
            remote.may_write.set()
            older.join()
    remote.again.join()
    assert remote.head(IDS[0].key, 9) == (b"block", 5)
    assert uploads.keys() == []


def test_what_is_put_on_a_far_tier_while_it_is_dropped_there_is_there() -> None:
    remote, block = AskedAgain(), encode_block(BLOCKS[0])
    remote.may_write.set()
    far = far_over(remote)
    far.put(block, lambda _: False)
    remote.again = Thread(target=far.put, args=[block, lambda _: False])
    assert far.drop(block.key)
    remote.again.join()
    assert far.holds(block.key)
    assert remote.head(block.key, 9) is not None
    far.check()
    far.close()


def test_what_is_dropped_while_its_write_waits_for_a_thread_is_not_written() -> None:
    remote = DictRemote()
    uploads = Uploads(remote)
    with uploads.wanted(IDS[0].key):
        assert uploads.keys() == [IDS[0].key]
        with uploads.unwanted(IDS[0].key):
            assert not uploads.remove(IDS[0].key)
        uploads.write(IDS[0].key, b"note", memoryview(b"block"))
        assert remote.head(IDS[0].key, 9) is None
        with uploads.wanted(IDS[0].key):
            uploads.write(IDS[0].key, b"note", memoryview(b"block"))
            with uploads.unwanted(IDS[0].key), uploads.wanted(IDS[0].key):
                assert not uploads.remove(IDS[0].key), "it waited, and the block is wanted again"
    assert remote.head(IDS[0].key, 9) == (b"block", 5)
    uploads.write(IDS[0].key, b"note", memoryview(b"late"))
    assert remote.head(IDS[0].key, 9) == (b"block", 5), "its caller left before it began"


def test_what_is_read_while_it_is_dropped_far_away_does_not_come_back() -> None:
    """The far tier says that it holds the block until its drop has come back."""
    remote = SlowToDrop()
    with with_far(remote) as writer:
        writer.write_behind(BLOCKS[0])
        assert writer.flush(60)
    with with_far(remote) as store:
        reader = store.open(IDS[0])
        assert reader is not None
        dropping = Thread(target=store.drop, args=[IDS[0].key])
        dropping.start()
        assert remote.begun.wait(60)
        with reader:
            reader.layers(0, 3)
        remote.may_drop.set()
        dropping.join()
        assert store.flush(60)
        assert store.tiers.where(IDS[0].key) == ()


def test_what_is_dropped_while_it_is_put_into_memory_does_not_stay() -> None:
    remote = DictRemote()
    with with_far(remote) as writer:
        writer.write_behind(BLOCKS[0])
        assert writer.flush(60)
    memory = DroppedMeanwhile(10**6, NoTrace())
    with Store([memory, Durable()], far=[far_over(remote)], clock=ManualClock()) as store:
        memory.drop_all = partial(store.drop, IDS[0].key)
        assert is_read(store, 0)
        assert store.flush(60)
        assert store.tiers.where(IDS[0].key) == ()


def test_where_nothing_may_be_dropped_a_far_tier_keeps_its_blocks() -> None:
    remote = DictRemote()
    with with_far(remote) as writer:
        writer.write_behind(BLOCKS[0])
        assert writer.flush(60)
    with opened(ReadOnly(), far=[far_over(remote)]) as store:
        for drop in (store.clear, partial(store.drop, IDS[0].key)):
            with pytest.raises(NoSpace):
                drop()
    assert remote.head(IDS[0].key, 10) is not None


def test_what_is_dropped_while_it_waits_for_its_promotion_is_not_written() -> None:
    remote = DictRemote()
    with with_far(remote) as writer:
        for block in BLOCKS[:2]:
            writer.write_behind(block)
        assert writer.flush(60)
    with with_far(remote) as store:
        store.queues.give_way(lambda: False)
        assert [is_read(store, number) for number in (0, 1)] == [True, True]
        assert store.tiers.where(IDS[0].key) == ("memory", "dict")
        assert store.drop(IDS[0].key)
        assert store.flush(60)
        assert store.tiers.where(IDS[0].key) == ()
        assert store.tiers.where(IDS[1].key) == ("memory", "durable", "dict")


def test_what_is_dropped_while_it_is_read_is_not_promoted() -> None:
    durable = Durable()
    with opened(durable) as store:
        durable.put(encode_block(BLOCKS[0]), lambda _: False)
        reader = store.open(IDS[0])
        assert reader is not None
        with reader:
            assert store.drop(IDS[0].key)
            assert len(reader.layers(0, 3)) == 3
        assert store.tiers.where(IDS[0].key) == ()
