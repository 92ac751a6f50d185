"""Reading: each layer comes out of a slow tier once, verified, however many want it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from kdn.core import BlockKey
from kdn.errors import CorruptBlock
from kdn.store import (
    Changes,
    EncodedBlock,
    Handle,
    ManagedTier,
    MemoryTier,
    Store,
    TierUsage,
    encode_block,
)
from kdn.store.index.index import Entry
from kdn.store.tiers.tier import Spare
from kdn.trace import NoTrace
from tests.store.helpers import block_id, make_block, run_of

NAME = block_id(range(10))


class Slow(Handle):
    """Copies what is read into a buffer of its own, and writes down what was asked for."""

    def __init__(self, data: bytearray, asked: list[tuple[int, int]]) -> None:
        self._data = data
        self._asked = asked
        self.buffer = memoryview(bytearray(len(data)))
        self.closed = False

    def read(self, start: int, stop: int) -> memoryview:
        assert not self.closed
        self._asked.append((start, stop))
        self.buffer[start:stop] = self._data[start:stop]
        return self.buffer[start:stop]

    def close(self) -> None:
        self.closed = True


class SlowTier(ManagedTier):
    """A dict that pretends to be far away."""

    name = "slow"
    trusted = False

    def __init__(self) -> None:
        self.blocks: dict[BlockKey, bytearray] = {}
        self.asked: list[tuple[int, int]] = []
        self.handles: list[Slow] = []
        self.added: list[Entry] = []
        self.removed: list[BlockKey] = []

    def open(self, key: BlockKey) -> Handle | None:
        if key not in self.blocks:
            return None
        self.handles.append(Slow(self.blocks[key], self.asked))
        return self.handles[-1]

    def put(self, block: EncodedBlock, spare: Spare) -> None:
        self.blocks[block.key] = bytearray(block.data)
        self.added.append(Entry.of(block.header.id))

    def drop(self, key: BlockKey) -> bool:
        self.removed.append(key)
        return self.blocks.pop(key, None) is not None

    def holds(self, key: BlockKey) -> bool:
        return key in self.blocks

    def changes(self) -> Changes:
        changes = Changes(tuple(self.added), tuple(self.removed))
        self.added, self.removed = [], []
        return changes

    def usage(self) -> TierUsage:
        return TierUsage(len(self.blocks), 0, 0, 0)


def far_store() -> tuple[Store, SlowTier]:
    """A store whose only copy of NAME is in the slow tier."""
    slow = SlowTier()
    slow.put(encode_block(make_block(NAME)), lambda _: False)
    return Store([MemoryTier(1 << 20, NoTrace()), slow]), slow


def test_neighbouring_layers_come_in_one_read() -> None:
    store, slow = far_store()
    reader = store.open(NAME)
    assert reader is not None
    with reader:
        reader.layer(1)
        reader.layers(0, 3)
        reader.layers(0, 3)
    # The header's page, layer 1 alone, then what was missing on both sides of it.
    assert slow.asked == [(0, 4096), (8192, 12288), (4096, 8192), (12288, 16384)]
    store.close()


def test_all_layers_at_once_are_one_read() -> None:
    store, slow = far_store()
    reader = store.open(NAME)
    assert reader is not None
    with reader:
        assert [bytes(run) for run in reader.layers(0, 3)] == [run_of(NAME, n) for n in range(3)]
    assert slow.asked == [(0, 4096), (4096, 16384)]
    store.close()


def test_a_block_that_came_whole_moves_up_and_its_handle_is_closed() -> None:
    store, slow = far_store()
    reader = store.open(NAME)
    assert reader is not None
    with reader:
        reader.layers(0, 3)
        assert slow.handles[0].closed
    again = store.open(NAME)
    assert again is not None
    with again:
        assert again.tier == "memory"
        assert bytes(again.layer(2)) == run_of(NAME, 2)
    assert len(slow.asked) == 2
    store.check()
    store.close()


def test_a_block_that_came_in_part_stays_where_it_is() -> None:
    store, slow = far_store()
    reader = store.open(NAME)
    assert reader is not None
    with reader:
        reader.layers(0, 2)
    assert slow.handles[0].closed
    assert store.stat().tiers["memory"].blocks == 0
    store.close()


def test_many_readers_share_one_load() -> None:
    store, slow = far_store()
    start = threading.Barrier(8)

    def read_all(_: int) -> list[bytes]:
        start.wait()
        reader = store.open(NAME)
        assert reader is not None
        with reader:
            runs = [bytes(reader.layer(layer)) for layer in range(3)]
            start.wait()  # nobody closes before all have read: all share
        return runs

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(read_all, range(8)))
    assert answers == [[run_of(NAME, layer) for layer in range(3)]] * 8
    layer_reads = [place for place in slow.asked if place[0] > 0]
    assert layer_reads == [(4096, 8192), (8192, 12288), (12288, 16384)]
    assert all(handle.closed for handle in slow.handles)
    store.check()
    store.close()


def test_a_damaged_layer_fails_for_every_reader_is_counted_once_and_then_gone() -> None:
    store, slow = far_store()
    slow.blocks[NAME.key][9000] ^= 1
    one, two = store.open(NAME), store.open(NAME)
    assert one is not None
    assert two is not None
    with one, two:
        assert bytes(one.layer(0)) == run_of(NAME, 0)
        for reader in (one, two, one):
            with pytest.raises(CorruptBlock, match="layer 1"):
                reader.layer(1)
        assert store.open(NAME) is None
        store.put(make_block(NAME))
        fresh = store.open(NAME)
        assert fresh is not None
        with fresh:
            assert bytes(fresh.layer(1)) == run_of(NAME, 1)
    assert store.stat().corrupt == 1
    store.check()
    store.close()


def test_a_damaged_copy_is_passed_over_for_a_sound_one_further_away() -> None:
    near, far = SlowTier(), SlowTier()
    near.name = "near"
    for tier in (near, far):
        tier.put(encode_block(make_block(NAME)), lambda _: False)
    near.blocks[NAME.key][100] ^= 1
    store = Store([near, far])
    reader = store.open(NAME)
    assert reader is not None
    with reader:
        assert reader.tier == "slow"
    assert (store.stat().corrupt, store.stat().misses) == (1, 0)
    store.close()


def test_runs_are_read_only() -> None:
    store, _ = far_store()
    for _ in range(2):  # from the slow tier, then from memory
        reader = store.open(NAME)
        assert reader is not None
        with reader:
            assert all(run.readonly for run in reader.layers(0, 3))
    store.close()


def test_a_run_outlives_its_reader_and_its_block() -> None:
    store, _ = far_store()
    reader = store.open(NAME)
    assert reader is not None
    run = reader.layer(0)
    reader.close()
    reader.close()
    store.clear()
    assert bytes(run) == run_of(NAME, 0)
    store.close()
