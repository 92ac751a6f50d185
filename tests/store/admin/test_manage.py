"""What operators do with stored blocks, on tiers of memory and disk."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kdn.clock import ManualClock
from kdn.core import BlockKey
from kdn.errors import BadInput, Unreachable
from kdn.store import (
    CODECS,
    DiskTier,
    RemoteSettings,
    RemoteTier,
    Store,
    encode_block,
    open_store,
    pack_note,
)
from kdn.store.admin.bundle import export_blocks
from kdn.store.admin.manage import (
    Done,
    Which,
    _fitting,
    compress,
    copy,
    forget,
    move,
    move_each,
    select,
    usage_by_salt,
    warm,
)
from kdn.store.block.reader import Handle
from kdn.store.index.index import Entry
from kdn.store.tiers.memory import MemoryTier
from kdn.trace import NoTrace
from tests.store.helpers import MODEL, block_id, make_block
from tests.store.twins import DictRemote, Meeting

IDS = [block_id([number] * 64, salt=salt) for number, salt in enumerate(("alice", "alice", "bob"))]
KEYS = [one.key for one in IDS]
SIZE = encode_block(make_block(IDS[0])).size_bytes


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "kv", disk_bytes=10**6) as store:
        for one in IDS:
            store.put(make_block(one))
        yield store
        store.check()


def test_selecting_by_tenant_model_tier_and_name(store: Store) -> None:
    assert set(select(store, Which(salt="alice"))) == set(KEYS[:2])
    assert set(select(store, Which(fingerprint=MODEL))) == set(KEYS)
    assert select(store, Which(fingerprint="another")) == []
    assert select(store, Which((KEYS[0], KEYS[2]), salt="bob")) == [KEYS[2]]
    store.tiers.named("memory").drop(KEYS[0])
    assert set(select(store, Which(tier="memory"))) == set(KEYS[1:])
    with pytest.raises(BadInput, match="no block feed is stored"):
        select(store, Which((BlockKey("feed"),)))
    with pytest.raises(BadInput, match="no tier 'tape'; it has memory, disk"):
        select(store, Which(tier="tape"))


def test_copies_and_moves_count_what_was_done_and_what_was_missing(store: Store) -> None:
    store.drop(KEYS[2])
    assert forget(store, KEYS[:2], "memory") == Done(2)
    assert forget(store, KEYS[2:]) == Done(0, missing=1)
    assert copy(store, KEYS, "memory") == Done(2, 2 * SIZE, 1)
    assert store.tiers.where(KEYS[0]) == ("memory", "disk")
    assert move(store, KEYS[:2], "disk", "memory") == Done(2, 2 * SIZE)
    assert store.tiers.where(KEYS[1]) == ("disk",)
    with pytest.raises(BadInput, match="from disk to itself"):
        move(store, KEYS, "disk", "disk")


def test_no_block_moves_to_a_tier_that_ends_with_the_process_from_one_that_does_not(
    store: Store,
) -> None:
    with pytest.raises(BadInput, match="from disk to memory: they would end with this process"):
        move(store, KEYS, "memory", "disk")
    with pytest.raises(BadInput, match="from disk to memory: they would end with this process"):
        move_each(store, [(KEYS[0], "disk")], "memory")
    assert [store.tiers.where(key) for key in KEYS] == [("memory", "disk")] * 3


def test_compressing_replaces_whole_blocks_and_refuses_what_loses(store: Store) -> None:
    done = compress(store, [*KEYS, BlockKey("0" * 64)], "lossless")
    assert (done.blocks, done.missing) == (3, 1)
    assert done.size_bytes != 3 * SIZE
    store.tiers.named("memory").drop(KEYS[0])
    reader = store.open(IDS[0])
    assert reader is not None
    with reader:
        assert list(map(bytes, reader.layers(0, 3))) == list(make_block(IDS[0]).layers)
    again = compress(store, KEYS, "lossless")
    assert (again.blocks, again.size_bytes) == (3, done.size_bytes)
    with pytest.raises(BadInput, match="int8 loses precision"):
        compress(store, KEYS, "int8")
    with pytest.raises(BadInput, match=f"no codec 'zip'; there are {min(CODECS)}"):
        compress(store, KEYS, "zip")


def test_use_by_tenant_and_tier(store: Store) -> None:
    store.tiers.named("memory").drop(KEYS[1])
    assert usage_by_salt(store) == {
        "alice": {"memory": SIZE, "disk": 2 * SIZE},
        "bob": {"memory": SIZE, "disk": SIZE},
    }


def test_warming_brings_far_blocks_here() -> None:
    clock, trace, remote = ManualClock(), NoTrace(), DictRemote()

    def opened() -> Store:
        far = RemoteTier(remote, RemoteSettings(poll_s=0), clock, trace)
        return Store([MemoryTier(10**6, trace)], far=[far], clock=clock)

    with opened() as writer:
        writer.put(make_block(IDS[0]))
        assert writer.flush(60)
    with opened() as reader:
        assert reader.index.get(KEYS[0]) is not None
        assert reader.tiers.where(KEYS[0]) == ("dict",)
        done = warm(reader, [KEYS[0], KEYS[1]])
        assert (done.blocks, done.missing) == (1, 1)
        assert reader.tiers.where(KEYS[0]) == ("memory", "dict")


def test_warming_reads_side_by_side_over_a_quick_link() -> None:
    """Each of two reads ends once both are under way; a block that the remote damaged is missing."""
    clock, trace, remote = ManualClock(), NoTrace(), Meeting(2)
    far = RemoteTier(remote, RemoteSettings(poll_s=0), clock, trace)
    blocks = [encode_block(make_block(block_id(range(n, n + 200)))) for n in range(2)]
    with Store([MemoryTier(10**6, trace)], far=[far], clock=clock) as store:
        for block in blocks:
            store.tenancy.put_into(far, block)
        damaged = bytearray(blocks[1].data)
        damaged[-5000] ^= 1
        remote.write(blocks[1].key, pack_note(Entry.of(blocks[1].header.id)), memoryview(damaged))
        store.index.refresh()
        with far.link.reading(10**9):
            clock.advance(1.0)
        told: list[int] = []
        done = warm(store, [block.key for block in blocks], lambda: told.append(1))
        assert (done.blocks, done.missing, len(told)) == (1, 1, 2)


def test_a_block_is_told_as_done_once_it_was_read() -> None:
    """The first eight of ten are under way when reading breaks: none of them is done."""

    class Breaking(DictRemote):
        def read(self, key: BlockKey, start: int, stop: int) -> bytes:
            raise KeyboardInterrupt

    far = RemoteTier(Breaking(), RemoteSettings(poll_s=0), ManualClock(), NoTrace())
    blocks = [encode_block(make_block(block_id(range(n, n + 200)))) for n in range(10)]
    told: list[int] = []
    with Store([MemoryTier(10**6, NoTrace())], far=[far], clock=ManualClock()) as store:
        for block in blocks:
            store.tenancy.put_into(far, block)
        with pytest.raises(KeyboardInterrupt):
            warm(store, [block.key for block in blocks], lambda: told.append(1))
    assert told == []


@pytest.mark.parametrize(("megabytes", "together"), [([1] * 8, 8), ([30, 30, 30], 2), ([200], 1)])
def test_no_more_is_warmed_at_once_than_the_queue_to_the_disk_takes(
    megabytes: list[int], together: int
) -> None:
    readers = [
        SimpleNamespace(num_tokens=size, shape=SimpleNamespace(token_bytes=10**6))
        for size in megabytes
    ]
    assert _fitting(cast("Any", readers)) == together


@pytest.mark.parametrize("what", ["gone", "cut", "damaged"])
def test_a_move_gives_up_no_block_for_one_that_is_not_whole(what: str) -> None:
    """The remote's own was lost or damaged since it was put there, and nobody has looked."""
    remote = DictRemote()
    far = RemoteTier(remote, RemoteSettings(), ManualClock(), NoTrace())
    with Store([MemoryTier(10**6, NoTrace())], far=[far]) as store:
        store.put(make_block(IDS[0]))
        assert store.flush(60)
        (listed,) = remote.changes().added
        data = bytearray(remote.read(KEYS[0], 0, SIZE))
        data[-1] ^= 1
        remote.remove(KEYS[0])
        if what != "gone":
            size = 5000 if what == "cut" else SIZE
            remote.write(KEYS[0], listed.note, memoryview(data)[:size])
        assert move(store, KEYS[:1], "dict", "memory") == Done(1, SIZE)
        assert store.tiers.where(KEYS[0]) == ("dict",)
        reader = store.open(IDS[0])
        assert reader is not None
        with reader:
            assert list(map(bytes, reader.layers(0, 3))) == list(make_block(IDS[0]).layers)


class _Frail(DictRemote):
    """Takes one block, and no further one."""

    def write(self, key: BlockKey, note: bytes, data: memoryview) -> None:
        if self.changes().added:
            raise Unreachable("it is down")
        super().write(key, note, data)


def test_a_move_that_ends_early_tells_how_far_it_came() -> None:
    far = RemoteTier(_Frail(), RemoteSettings(), ManualClock(), NoTrace())
    memory = MemoryTier(10**6, NoTrace())
    with Store([memory], far=[far]) as store:
        for one in IDS:
            memory.put(encode_block(make_block(one)), store.tenancy.spares)
        store.index.refresh()
        with pytest.raises(Unreachable, match="it is down; 1 block went there before"):
            move(store, KEYS, "dict", "memory")
        assert [store.tiers.where(key) for key in KEYS] == [("dict",), ("memory",), ("memory",)]


def test_blocks_of_two_tiers_move_in_one_pass_that_counts_both(tmp_path: Path) -> None:
    """One goes from memory; the far tier takes no second one, which stays on the disk."""
    far = RemoteTier(_Frail(), RemoteSettings(), ManualClock(), NoTrace())
    local = [MemoryTier(10**6, NoTrace()), DiskTier(tmp_path, 10**7, ManualClock(), NoTrace())]
    with Store(local, far=[far]) as store:
        for tier, one in zip(local, IDS, strict=False):
            tier.put(encode_block(make_block(one)), store.tenancy.spares)
        store.index.refresh()
        with pytest.raises(Unreachable, match="it is down; 1 block went there before"):
            move_each(store, [(KEYS[0], "memory"), (KEYS[1], "disk")], "dict")
        assert [store.tiers.where(key) for key in KEYS[:2]] == [("dict",), ("disk",)]


def test_a_block_that_only_a_far_tier_has_is_not_compressed() -> None:
    far = RemoteTier(DictRemote(), RemoteSettings(), ManualClock(), NoTrace())
    with Store([MemoryTier(10**6, NoTrace())], far=[far]) as store:
        store.put(make_block(IDS[0]))
        assert store.flush(60)
        store.tiers.named("memory").drop(KEYS[0])
        assert compress(store, KEYS[:1], "lossless") == Done(missing=1)


class _Watched(MemoryTier):
    """Tells when a block was opened, and when it is about to be dropped."""

    name = "watched"

    def __init__(self) -> None:
        super().__init__(10**6, NoTrace())
        self.on_open: Callable[[BlockKey], object] = lambda _: None
        self.on_drop: Callable[[BlockKey], object] = lambda _: None

    def open(self, key: BlockKey) -> Handle | None:
        handle = super().open(key)
        self.on_open(key)
        return handle

    def drop(self, key: BlockKey) -> bool:
        self.on_drop(key)
        return super().drop(key)


_ACTS: dict[str, Callable[[Store, list[BlockKey]], Done]] = {
    "copy": lambda store, keys: copy(store, keys, "dict", "watched"),
    "move": lambda store, keys: move(store, keys, "dict", "watched"),
    "compress": lambda store, keys: compress(store, keys, "lossless"),
}


@pytest.mark.parametrize("how", ["drop", "clear"])
@pytest.mark.parametrize("act", _ACTS)
def test_what_is_dropped_while_it_is_read_stays_dropped(act: str, how: str) -> None:
    """The second block is dropped, or all are; the first is done before."""
    watched = _Watched()
    far = RemoteTier(DictRemote(), RemoteSettings(), ManualClock(), NoTrace())
    with Store([watched], far=[far]) as store:
        for one in IDS[:2]:
            watched.put(encode_block(make_block(one)), store.tenancy.spares)
        store.index.refresh()
        drop = store.drop if how == "drop" else lambda _: store.clear()
        watched.on_open = lambda key: drop(key) if key == KEYS[1] else None
        done = _ACTS[act](store, KEYS[:2])
        assert (done.blocks, done.missing) == (1, 1)
        assert store.tiers.where(KEYS[1]) == ()
        assert bool(store.tiers.where(KEYS[0])) == (how == "drop")


@pytest.mark.parametrize("act", _ACTS)
def test_what_is_being_dropped_is_not_carried_to_a_tier_that_it_has_left(act: str) -> None:
    """A drop begins with the far tier; before it comes to the last one, the block is to go far again."""
    watched = _Watched()
    far = RemoteTier(DictRemote(), RemoteSettings(), ManualClock(), NoTrace())
    with Store([watched], far=[far]) as store:
        store.put(make_block(IDS[0]))
        assert store.flush(60)
        found: list[Done] = []

        def carry(key: BlockKey) -> None:
            watched.on_drop = lambda _: None
            found.append(_ACTS[act](store, [key]))

        watched.on_drop = carry
        assert store.drop(KEYS[0])
        assert (found[0].blocks, found[0].missing) == (0, 1)
        assert store.tiers.where(KEYS[0]) == ()


class _SharedDisk(DiskTier):
    """Another process drops a block once it was opened here."""

    on_open: Callable[[BlockKey], object] = staticmethod(lambda _: None)

    def open(self, key: BlockKey) -> Handle | None:
        handle = super().open(key)
        self.on_open(key)
        return handle


def _with_far(disk: DiskTier, remote: DictRemote) -> Store:
    far = RemoteTier(remote, RemoteSettings(poll_s=0), ManualClock(), NoTrace())
    return Store([disk], far=[far])


@pytest.mark.parametrize("act", _ACTS)
def test_what_another_process_drops_meanwhile_stays_dropped(act: str, tmp_path: Path) -> None:
    remote = DictRemote()
    folder = tmp_path, 10**7, ManualClock(), NoTrace()
    other_disk, disk = DiskTier(*folder), _SharedDisk(*folder)
    disk.name = "watched"
    with _with_far(other_disk, remote) as other, _with_far(disk, remote) as store:
        other_disk.put(encode_block(make_block(IDS[0])), other.tenancy.spares)
        other.index.refresh()
        store.index.refresh()
        disk.on_open = other.drop
        assert _ACTS[act](store, KEYS[:1]) == Done(missing=1)
        assert remote.head(KEYS[0], 9) is None
        assert store.tiers.where(KEYS[0]) == other.tiers.where(KEYS[0]) == ()


class _SharedRemote(DictRemote):
    """Another process drops a block once it was read here: small ones come whole with the first look."""

    on_read: Callable[[BlockKey], object] = staticmethod(lambda _: None)

    def head(self, key: BlockKey, num_bytes: int) -> tuple[bytes, int] | None:
        found = super().head(key, num_bytes)
        self.on_read(key)
        return found


def test_a_copy_to_where_the_block_was_before_undoes_no_drop_of_another_process(
    tmp_path: Path,
) -> None:
    remote = _SharedRemote()
    folder = tmp_path, 10**7, ManualClock(), NoTrace()
    with (
        _with_far(DiskTier(*folder), remote) as other,
        _with_far(DiskTier(*folder), remote) as store,
    ):
        store.put(make_block(IDS[0]))
        assert store.flush(60)
        assert other.tiers.where(KEYS[0]) == ()
        other.index.refresh()
        assert other.tiers.where(KEYS[0]) == store.tiers.where(KEYS[0]) == ("disk", "dict")
        remote.on_read = other.drop
        assert copy(store, KEYS[:1], "disk", "dict") == Done(missing=1)
        assert store.tiers.where(KEYS[0]) == other.tiers.where(KEYS[0]) == ()


def test_a_block_that_moves_is_not_evicted_for_one_that_comes_meanwhile(tmp_path: Path) -> None:
    """The disk has room for two, and the first is to move while a third comes: the second goes for it."""
    remote = DictRemote()
    disk = _SharedDisk(tmp_path, 2 * SIZE, ManualClock(), NoTrace())
    with _with_far(disk, remote) as store:
        for one in IDS[:2]:
            disk.put(encode_block(make_block(one)), store.tenancy.spares)
        store.index.refresh()

        def come(_: BlockKey) -> None:
            disk.on_open = lambda _: None
            disk.put(encode_block(make_block(IDS[2])), store.tenancy.spares)

        disk.on_open = come
        assert move(store, KEYS[:1], "dict", "disk") == Done(1, SIZE)
        assert remote.head(KEYS[0], 9) is not None
        assert [store.tiers.where(key) for key in KEYS] == [("dict",), (), ("disk",)]
        assert KEYS[0] not in store.tenancy.pins


class _Dead(DictRemote):
    """Takes blocks and gives none."""

    def head(self, key: BlockKey, num_bytes: int) -> tuple[bytes, int] | None:
        raise Unreachable("it is down")


def test_a_block_in_a_dead_tier_is_missing_and_the_others_are_done() -> None:
    far = RemoteTier(_Dead(), RemoteSettings(), ManualClock(), NoTrace())
    with Store([MemoryTier(10**6, NoTrace())], far=[far]) as store:
        for one in IDS[:2]:
            store.put(make_block(one))
        assert store.flush(60)
        store.tiers.named("memory").drop(KEYS[0])
        assert compress(store, KEYS[:2], "none") == Done(1, SIZE, 1)
        assert export_blocks(store, KEYS[:2], io.BytesIO()) == Done(1, SIZE, 1)
