"""Blocks that are being read: shared while open, finished when given up, sought elsewhere when damaged."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from threading import Barrier

import pytest

from kdn.clock import ManualClock
from kdn.core import BlockKey
from kdn.errors import CorruptBlock, StoreError
from kdn.store import EncodedBlock, Handle, encode_block
from kdn.store.block.reader import BytesHandle, StoreLoad
from kdn.store.index.followed import FollowedIndex
from kdn.store.links import Links
from kdn.store.loads import Loads
from kdn.store.tiers.memory import MemoryTier
from kdn.store.tiers.tier import Outcomes, Tiers
from kdn.trace import NoTrace, Recorder
from tests.store.helpers import block_id, make_block, run_of

FIRST = block_id(range(100))
ENCODED = encode_block(make_block(FIRST))


class Held(MemoryTier):
    """A memory tier whose handles can be counted, spoiled or refused."""

    trusted = False

    def __init__(self, name: str, *, far: bool = False) -> None:
        super().__init__(10**6, NoTrace())
        self.name, self.far = name, far
        self.opened = 0
        self.spoiled: int | None = None
        """Which byte of the block is wrong."""
        self.fails = False

    def open(self, key: BlockKey) -> Handle | None:
        if self.fails:
            raise StoreError(f"{self.name} is gone")
        if not self.holds(key):
            return None
        self.opened += 1
        data = bytearray(ENCODED.data)
        if self.spoiled is not None:
            data[self.spoiled] ^= 1
        return BytesHandle(memoryview(data))


class World:
    """Loads over two tiers that hold one block."""

    def __init__(self, *, far: bool = False, takes_over: bool = False) -> None:
        self.takes_over = takes_over
        self.trace, self.whole, self.finished = Recorder(), list[EncodedBlock](), list[StoreLoad]()
        self.fast, self.slow = Held("fast"), Held("slow", far=far)
        self.slow.put(ENCODED, lambda _: False)
        far_tiers = [self.slow] if far else []
        tiers = Tiers([self.fast, *([] if far else [self.slow])], far_tiers)
        self.outcomes = Outcomes(self.trace)
        self.index = FollowedIndex(tiers, self.outcomes)
        self.loads = Loads(
            tiers,
            self.index,
            self.outcomes,
            Links(ManualClock()),
            on_whole=lambda _, block: self.whole.append(block),
            finish=self._finish,
        )

    def _finish(self, load: StoreLoad) -> bool:
        self.finished.append(load)
        return self.takes_over

    def enter(self) -> StoreLoad:
        load = self.loads.enter(FIRST.key)
        assert load is not None
        return load


def test_readers_of_one_block_share_one_load() -> None:
    world, barrier = World(), Barrier(8)

    def read(_: int) -> bytes:
        barrier.wait(60)
        load = world.enter()
        run = bytes(load.layers(0, 1)[0])
        barrier.wait(60)
        world.loads.leave(FIRST.key, load)
        return run

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(read, range(8))) == {run_of(FIRST, 0)}
    assert world.slow.opened == 1
    world.loads.leave(FIRST.key, world.enter())
    assert world.slow.opened == 2, "after the last reader it is opened again"
    world.loads.check()


def test_a_block_that_came_whole_is_promoted_once() -> None:
    world = World()
    load = world.enter()
    load.layers(0, 2)
    assert world.whole == []
    load.layers(1, 3)
    load.layers(0, 3)
    assert [block.key for block in world.whole] == [FIRST.key]
    assert bytes(world.whole[0].data) == bytes(ENCODED.data)


def test_a_damaged_header_sends_the_reader_to_the_next_tier() -> None:
    world = World()
    world.fast.put(ENCODED, lambda _: False)
    world.index.refresh()
    world.fast.spoiled = 20
    load = world.enter()
    assert load.tier == "slow"
    assert world.outcomes.counts()["corrupt"] == 1
    assert not world.fast.holds(FIRST.key), "out of use"


def test_a_damaged_layer_is_raised_ever_after_and_not_shared() -> None:
    world = World()
    world.slow.spoiled = ENCODED.header.layer_range(1)[0]
    load = world.enter()
    assert bytes(load.layers(0, 1)[0]) == run_of(FIRST, 0)
    for _ in range(2):
        with pytest.raises(CorruptBlock, match="layer 1 fails its checksum"):
            load.layers(0, 2)
    assert world.outcomes.counts()["corrupt"] == 1
    assert world.loads.enter(FIRST.key) is None, "out of use: it is computed again"
    world.loads.leave(FIRST.key, load)


def test_a_tier_that_fails_is_counted_and_the_next_one_asked() -> None:
    world = World()
    world.fast.fails = True
    assert world.enter().tier == "slow"
    assert world.outcomes.counts()["failed"] == 1
    assert world.trace.events("store.failed")[0].fields["reason"] == "fast is gone"


@pytest.mark.parametrize(
    ("far", "layers", "taken"), [(True, 1, 1), (True, 3, 0), (True, 0, 0), (False, 1, 0)]
)
def test_a_far_load_that_was_given_up_half_way_is_offered_to_be_finished(
    far: bool, layers: int, taken: int
) -> None:
    world = World(far=far, takes_over=True)
    load = world.enter()
    if layers:
        load.layers(0, layers)
    world.loads.leave(FIRST.key, load)
    assert len(world.finished) == taken


def test_scrubbing_tells_size_absence_and_damage() -> None:
    world = World()
    assert world.loads.scrub(world.slow, FIRST.key) == ENCODED.size_bytes
    assert world.loads.scrub(world.slow, BlockKey("0" * 64)) == 0
    world.slow.spoiled = ENCODED.size_bytes - 1
    assert world.loads.scrub(world.slow, FIRST.key) is None
    assert not world.slow.holds(FIRST.key)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_reads_that_share_a_link_show_its_speed_together(count: int) -> None:
    """Each of 10 MB over 10 MB/s; they end a moment after one another."""
    clock = ManualClock()
    links = Links(clock)
    for _ in range(3):
        with ExitStack() as reads:
            for _ in range(count):
                reads.enter_context(links.side_by_side("node", lambda: 10**7))
            clock.advance(count)
    assert links.last_bytes_per_s("node") == 10**7
    assert links.bytes_per_s("node") == pytest.approx(10**7)


def test_reads_side_by_side_take_their_time_once() -> None:
    """100 bytes from second 0 to 2 and 100 from 1 to 4 are 50 bytes a second; one that fails is none."""
    clock = ManualClock()
    links = Links(clock)
    with ExitStack() as second:
        with links.side_by_side("disk", lambda: 100):
            clock.advance(1)
            second.enter_context(links.side_by_side("disk", lambda: 100))
            clock.advance(1)
        clock.advance(2)
    clock.advance(5)
    with suppress(CorruptBlock), links.side_by_side("disk", lambda: 100):
        clock.advance(1)
        raise CorruptBlock("damaged")
    assert links.last_bytes_per_s("disk") == 50
    assert links.bytes_per_s("disk") == pytest.approx((0.9 * 100 + 100) / (0.9 * 2 + 2))
