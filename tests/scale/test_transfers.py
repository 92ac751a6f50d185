"""Loads bring exactly what was saved, or say which blocks did not come; nothing is ever half right."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from kdn.clock import ManualClock
from kdn.core import EXACT
from kdn.errors import NoSpace
from kdn.scale.counts import METRICS, TransferCounts
from kdn.scale.paged import WriteOrder
from kdn.scale.planner import LoadTask, SaveTask
from kdn.scale.transfers import Transfers
from kdn.store import (
    Block,
    BlockHit,
    MemoryTier,
    Reader,
    RemoteSettings,
    RemoteTier,
    Store,
    open_store,
)
from kdn.trace import NoTrace
from tests.scale.engine import PRINT, SIZE, Rig, compute, fingerprint, holds
from tests.store.twins import Meeting

PROMPT = tuple(range(1, 701))


def test_what_was_saved_comes_back_into_other_blocks() -> None:
    rig = Rig()
    assert rig.prefill("a", PROMPT, (3, 1, 4, 0, 5, 9)) == 0
    table = (2, 6, 7, 8, 10, 11)
    assert rig.prefill("b", PROMPT, table) == 640
    assert holds(rig.cache, PROMPT, table)
    rig.transfers.close()


def test_a_prompt_with_the_same_beginning_has_that_loaded() -> None:
    """The first 300 tokens agree: two blocks of the engine, 256 tokens."""
    rig = Rig()
    rig.prefill("a", PROMPT, range(6))
    other = (*PROMPT[:300], *range(2000, 2300))
    assert rig.prefill("b", other, range(6, 12)) == 256
    assert holds(rig.cache, other, range(6, 12))


def test_a_conversation_that_grows_finds_its_last_turn() -> None:
    rig = Rig()
    for number, length in enumerate((300, 420, 700)):
        table = range(6 * (number % 2), 6 * (number % 2) + 6)
        found = rig.prefill(str(number), PROMPT[:length], table)
        assert found == (0, 256, 384)[number]
        assert holds(rig.cache, PROMPT[:length], table)


def test_a_load_begins_where_the_engine_s_own_cache_ends() -> None:
    rig = Rig()
    rig.prefill("a", PROMPT, range(6))
    table = (6, 7, 8, 9, 10)
    rig.transfers.load(LoadTask("b", None, "", PROMPT[:640], 384, table))
    assert rig.transfers.take_finished(60).failed_blocks == frozenset()
    assert holds(rig.cache, PROMPT[:640], table, 384)
    assert not rig.cache.layers[0].k[6:9].any(), "what the engine has is not touched"


def test_a_load_across_a_network_reads_its_blocks_side_by_side() -> None:
    """Of three blocks each read ends once all three are under way."""
    clock = ManualClock()
    far = RemoteTier(Meeting(3), RemoteSettings(poll_s=0), clock, NoTrace())
    with Store([MemoryTier(1 << 26, NoTrace())], far=[far]) as store:
        rig = Rig(store)
        rig.prefill("a", PROMPT, range(6))
        assert store.flush(60)
        for hit in store.match(PRINT, EXACT, "", PROMPT).hits:
            store.tiers.fastest.drop(hit.id.key)
        with far.link.reading(10**9):
            clock.advance(1.0)
        table = (6, 7, 8, 9, 10)
        rig.transfers.load(LoadTask("b", None, "", PROMPT[:640], 0, table))
        assert rig.transfers.take_finished(60).failed_blocks == frozenset()
        assert holds(rig.cache, PROMPT[:640], table)
        rig.transfers.close()


def stored_blocks(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.kdn"), key=str)


def test_a_damaged_block_fails_with_all_after_it_and_is_stored_again(tmp_path: Path) -> None:
    """Block 2 of 3 is damaged: tokens 0 to 256 come, the engine's blocks from 256 on are named."""
    with open_store(tmp_path, memory_bytes=0) as store:
        rig = Rig(store)
        rig.prefill("a", PROMPT, range(6))
        second = store.match(PRINT, EXACT, "", PROMPT).hits[1].id.key
        (file,) = [path for path in tmp_path.rglob("*") if second in path.name]
        data = bytearray(file.read_bytes())
        data[-5000] ^= 1
        file.write_bytes(data)

        rig.transfers.load(LoadTask("b", None, "", PROMPT[:640], 0, (6, 7, 8, 9, 10)))
        ended = rig.transfers.take_finished(60)
        assert ended.request_ids == {"b"}
        assert ended.failed_blocks == {8, 9, 10}
        assert holds(rig.cache, PROMPT[:256], (6, 7))
        assert rig.prefill("c", PROMPT, range(6, 12)) == 256
        assert rig.prefill("d", PROMPT, range(6)) == 640
        assert rig.counts.total()["failed_tokens"] == 384
        rig.transfers.close()


def test_what_left_the_store_meanwhile_is_named() -> None:
    rig = Rig()
    rig.prefill("a", PROMPT, range(6))
    rig.store.clear()
    rig.transfers.load(LoadTask("b", None, "", PROMPT[:640], 128, (6, 7, 8, 9, 10)))
    assert rig.transfers.take_finished(60).failed_blocks == {7, 8, 9, 10}


class Stalling(Store):
    """Opens blocks only when told to, or fails altogether."""

    def __init__(self) -> None:
        super().__init__([MemoryTier(1 << 26, NoTrace())])
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.breaks = False

    def open(self, what: BlockHit, *_: object) -> Reader | None:  # type: ignore[override]
        self.reached.set()
        assert self.go_on.wait(60)
        if self.breaks:
            raise RuntimeError("a fault nobody thought of")
        return super().open(what)


def test_a_cancelled_load_ends_soon_and_says_so() -> None:
    store = Stalling()
    rig = Rig(store)
    store.go_on.set()
    rig.prefill("a", PROMPT, range(6))
    store.go_on.clear()
    rig.transfers.load(LoadTask("b", None, "", PROMPT[:640], 0, (6, 7, 8, 9, 10)))
    assert store.reached.wait(60)
    assert rig.transfers.take_finished() == type(rig.transfers.take_finished())()
    rig.transfers.cancel({"b", "nobody"})
    store.go_on.set()
    assert rig.transfers.take_finished(60).request_ids == {"b"}
    assert rig.counts.total()["cancelled_loads"] == 1
    assert not rig.cache.layers[0].k[6:11].any()


def test_any_fault_of_a_load_is_a_miss_and_the_next_load_works() -> None:
    store = Stalling()
    store.go_on.set()
    rig = Rig(store)
    rig.prefill("a", PROMPT, range(6))
    store.breaks = True
    rig.transfers.load(LoadTask("b", None, "", PROMPT[:640], 0, (6, 7, 8, 9, 10)))
    assert rig.transfers.take_finished(60).failed_blocks == {6, 7, 8, 9, 10}
    store.breaks = False
    assert rig.prefill("c", PROMPT, range(6, 12)) == 640


def test_too_much_that_waits_is_dropped_and_counted() -> None:
    """640 tokens of 192 bytes are 122,880 bytes: a queue of 100,000 takes none of them."""
    rig = Rig(queue_bytes=100_000)
    assert rig.prefill("a", PROMPT, range(6)) == 0
    assert rig.counts.total()["dropped_blocks"] == 3
    assert rig.prefill("b", PROMPT, range(6)) == 0


def test_a_store_that_cannot_take_a_block_costs_only_that() -> None:
    class Full(Store):
        def write_behind(self, block: Block, *_: object) -> None:
            raise NoSpace("full")

    rig = Rig(Full([MemoryTier(1 << 26, NoTrace())]))
    assert rig.prefill("a", PROMPT, range(6)) == 0
    assert rig.counts.total()["dropped_blocks"] == 3
    assert rig.prefill("b", PROMPT, range(6)) == 0


def test_the_engine_may_overwrite_blocks_right_after_the_step() -> None:
    rig = Rig()
    table = range(5)
    compute(rig.cache, PROMPT[:640], table)
    rig.transfers.save(SaveTask(None, "", PROMPT[:640], 0, tuple(table)))
    for layer in rig.cache.layers:
        layer.k.zero_()
        layer.v.zero_()
    assert rig.transfers.flush(60)
    rig.transfers.load(LoadTask("b", None, "", PROMPT[:640], 0, tuple(table)))
    assert not rig.transfers.take_finished(60).failed_blocks
    assert holds(rig.cache, PROMPT[:640], table)


@pytest.mark.parametrize("length", [128, 256, 384, 511, 513])
def test_lengths_around_a_block_s_border(length: int) -> None:
    rig = Rig()
    prompt: Sequence[int] = PROMPT[:length]
    rig.prefill("a", prompt, range(6))
    longer = (*prompt, 9999)
    assert rig.prefill("b", longer, range(6, 12)) == length // SIZE * SIZE
    assert holds(rig.cache, longer, range(6, 12))


def test_a_load_is_told_of_once_the_device_has_what_it_wrote() -> None:
    """It begins after what the engine asked before it; one that fails waits for its writes, too."""

    class Queued(WriteOrder):
        def __init__(self) -> None:
            super().__init__(torch.device("cpu"))
            self.told: list[str] = []
            self.go_on = threading.Event()

        def mark(self) -> Callable[[], None]:
            self.told.append("marked")
            return lambda: self.told.append("waited for the engine")

        def finish(self) -> None:
            self.told.append("waiting")
            assert self.go_on.wait(60)

    store, order = Stalling(), Queued()
    store.go_on.set()
    rig = Rig(store)
    rig.prefill("a", PROMPT, range(6))
    transfers = Transfers(store, rig.cache, fingerprint, rig.counts, order=order)
    for store.breaks, failed in ((False, set[int]()), (True, {6, 7, 8, 9, 10})):
        store.reached.clear()
        transfers.load(LoadTask("b", None, "", PROMPT[:640], 0, (6, 7, 8, 9, 10)))
        assert store.reached.wait(60)
        assert transfers.take_finished().request_ids == frozenset()
        order.go_on.set()
        assert transfers.take_finished(60).failed_blocks == failed
        assert order.told == ["marked", "waited for the engine", "waiting"]
        order.told.clear()
        order.go_on.clear()
    transfers.close()


def test_counters_are_taken_once_and_summed_for_ever() -> None:
    counts = TransferCounts()
    counts.add(loads=2, hit_tokens=640)
    counts.add(loads=1)
    assert counts.take() == {"loads": 3, "hit_tokens": 640}
    assert counts.take() == {}
    assert counts.total()["loads"] == 3
    assert counts.total().keys() == METRICS.keys()
    with pytest.raises(AssertionError):
        counts.add(unknown=1)
