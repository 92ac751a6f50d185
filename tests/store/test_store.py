"""The store as its callers see it: match, open, put, write_behind, stat."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kdn.clock import ManualClock
from kdn.core import EXACT, Cause, Recipe
from kdn.errors import NoSpace, StoreError
from kdn.store import (
    Changes,
    DiskTier,
    EncodedBlock,
    MemoryTier,
    ScrubReport,
    Store,
    open_store,
)
from kdn.store.index.index import Family
from kdn.store.tiers.tier import Spare
from kdn.trace import Recorder
from tests.store.helpers import MODEL, block_id, make_block, run_of
from tests.store.twins import NoTier

PROMPT = tuple(range(300))
FIRST = block_id(PROMPT[:256])
SECOND = block_id(PROMPT[256:], PROMPT[:256])


def found(store: Store, tokens: tuple[int, ...] = PROMPT) -> list[tuple[int, str]]:
    match = store.match(MODEL, EXACT, "", tokens)
    return [(hit.num_tokens, hit.tier) for hit in match.hits]


def test_what_was_put_is_found_and_equal_after_a_restart(tmp_path: Path) -> None:
    with open_store(tmp_path / "kv", disk_bytes=10**9) as store:
        store.put(make_block(FIRST))
        store.write_behind(make_block(SECOND))
        assert found(store) == [(256, "memory"), (44, "memory")]
        assert store.flush(60)
        store.check()
    with open_store(tmp_path / "kv", disk_bytes=10**9) as store:
        match = store.match(MODEL, EXACT, "", PROMPT)
        assert [(hit.num_tokens, hit.tier) for hit in match.hits] == [(256, "disk"), (44, "disk")]
        for hit in match.hits:
            reader = store.open(hit)
            assert reader is not None
            with reader:
                assert [bytes(run) for run in reader.layers(0, 3)] == [
                    run_of(hit.id, layer) for layer in range(3)
                ]
        assert found(store) == [(256, "memory"), (44, "memory")]
        assert (store.stat().hits, store.stat().hit_tokens, store.stat().misses) == (2, 300, 0)
        store.check()


def test_a_partial_hit_reads_only_the_rows_that_fit() -> None:
    with open_store(None) as store:
        store.put(make_block(FIRST))
        (hit,) = store.match(MODEL, EXACT, "", (*range(100), 999)).hits
        reader = store.open(hit)
        assert reader is not None
        with reader:
            keys, values = reader.parts(1)
        run = run_of(FIRST, 1)
        assert reader.num_tokens == 100
        assert bytes(keys) == run[: 100 * 32]
        assert bytes(values) == run[256 * 32 : 356 * 32]


def test_a_tainted_block_never_answers_an_exact_lookup() -> None:
    blended = Recipe((Cause.BLEND,), "r=0.15")
    tainted = block_id(PROMPT[:256], recipe=blended)
    with open_store(None) as store:
        store.put(make_block(tainted))
        assert found(store) == []
        assert store.match(MODEL, blended, "", PROMPT).num_tokens == 256
        assert store.find_content(FIRST.content_id) == (tainted,)


def test_salts_and_models_do_not_mix() -> None:
    with open_store(None) as store:
        store.put(make_block(block_id(PROMPT[:256], salt="tenant-a")))
        assert found(store) == []
        assert store.match(MODEL, EXACT, "tenant-a", PROMPT).num_tokens == 256


def test_a_block_that_is_not_there_is_a_counted_miss() -> None:
    trace = Recorder()
    with open_store(None, trace=trace) as store:
        assert store.open(FIRST) is None
        assert store.stat().misses == 1
        assert trace.count("store.miss") == 1


def test_what_a_reader_holds_is_not_evicted_from_memory() -> None:
    with open_store(None, memory_bytes=53248) as store:  # one full block
        store.put(make_block(FIRST))
        reader = store.open(FIRST)
        assert reader is not None
        with reader:
            with pytest.raises(NoSpace):
                store.put(make_block(SECOND))
            assert found(store) == [(256, "memory")]
        store.put(make_block(SECOND))
        assert found(store) == []
        stat = store.stat()
        assert (stat.blocks, stat.evicted, stat.dropped) == (1, 1, 1)
        store.check()


def test_pinned_keys_stay_while_the_block_lasts() -> None:
    with open_store(None, memory_bytes=53248) as store:
        store.put(make_block(FIRST))
        (hit,) = store.match(MODEL, EXACT, "", PROMPT).hits
        store.tenancy.pins.hold(hit.id.key)
        with pytest.raises(NoSpace):
            store.put(make_block(SECOND))
        store.tenancy.pins.release(hit.id.key)
        store.put(make_block(SECOND))
        assert store.open(FIRST) is None


def test_an_evicted_memory_copy_is_still_on_disk(tmp_path: Path) -> None:
    with open_store(tmp_path / "kv", memory_bytes=60000, disk_bytes=10**6) as store:
        store.put(make_block(FIRST))
        store.put(make_block(SECOND))
        assert found(store) == [(256, "disk"), (44, "memory")]
        store.check()


def test_a_full_queue_leaves_the_block_in_memory_only_and_says_so(tmp_path: Path) -> None:
    trace = Recorder()
    disk = DiskTier(tmp_path / "kv", 10**6, ManualClock(), trace)
    with Store([MemoryTier(10**6, trace), disk], trace=trace, write_behind_bytes=1000) as store:
        store.write_behind(make_block(FIRST))
        assert found(store) == [(256, "memory")]
        assert store.stat().dropped == 1
        assert trace.events("store.refuse")[0].fields["tier"] == "queue"
        assert store.stat().tiers["disk"].blocks == 0
        store.check()


def test_putting_twice_is_putting_once(tmp_path: Path) -> None:
    with open_store(tmp_path / "kv", disk_bytes=10**6) as store:
        for _ in range(3):
            store.put(make_block(FIRST))
            store.write_behind(make_block(FIRST))
        store.flush(60)
        assert store.stat().puts == 1
        assert store.stat().tiers["disk"].blocks == 1
        store.check()


def test_drop_and_clear_forget_everywhere(tmp_path: Path) -> None:
    with open_store(tmp_path / "kv", disk_bytes=10**6) as store:
        store.put(make_block(FIRST))
        store.put(make_block(SECOND))
        assert store.drop(FIRST.key)
        assert not store.drop(FIRST.key)
        assert store.find_content(FIRST.content_id) == ()
        assert store.find_content(SECOND.content_id) == (SECOND,)
        store.write_behind(make_block(FIRST))
        store.clear()
        stat = store.stat()
        assert (stat.blocks, stat.queued_bytes) == (0, 0)
        assert not list((tmp_path / "kv").rglob("*.kdn"))
        store.check()


def test_a_block_that_is_dropped_while_it_waits_is_not_written(tmp_path: Path) -> None:
    with open_store(tmp_path / "kv", disk_bytes=10**6) as store:
        gate = threading.Event()
        store.queues.later(0, lambda: gate.wait(60))
        store.write_behind(make_block(FIRST))
        assert store.drop(FIRST.key)
        gate.set()
        assert store.flush(60)
        assert store.stat().blocks == 0
        store.check()


def test_verify_reads_everything_and_puts_damage_out_of_use(tmp_path: Path) -> None:
    with open_store(tmp_path / "kv", disk_bytes=10**6) as store:
        store.put(make_block(FIRST))
        store.put(make_block(SECOND))
        assert store.verify() == ScrubReport(2, 53248 + 16384, ())
        (path,) = (tmp_path / "kv").rglob(f"{SECOND.key}.kdn")
        data = bytearray(path.read_bytes())
        data[-1] ^= 128
        path.write_bytes(data)
        assert store.verify().corrupt == (SECOND.key,)
        assert store.verify() == ScrubReport(1, 53248, ())


def test_it_is_told_without_a_look_up_whether_a_family_has_blocks() -> None:
    with open_store(None) as store:
        store.put(make_block(FIRST))
        mine, others = Family(MODEL, EXACT, ""), Family(MODEL, EXACT, "x")
        assert store.index.among([others, mine]) == {mine}
        assert not store.index.among([others])
        store.drop(FIRST.key)
        assert not store.index.among([mine])
        assert store.stat().lookups == 0


def test_the_numbers_tell_what_happened() -> None:
    with open_store(None) as store:
        store.put(make_block(FIRST))
        store.match(MODEL, EXACT, "", PROMPT)
        store.match(MODEL, EXACT, "", (5, 6))
        stat = store.stat()
        assert (stat.lookups, stat.lookup_tokens, stat.match_tokens) == (2, 302, 256)
        assert (stat.puts, stat.put_bytes) == (1, 53248)
        assert stat.tiers["memory"].tokens == 256


def test_readers_and_evictions_at_once_never_give_a_wrong_byte(tmp_path: Path) -> None:
    names = [block_id([number] * 40) for number in range(12)]
    blocks = [make_block(name) for name in names]
    # Four blocks fit in memory, eight on disk; four threads want all twelve.
    with open_store(tmp_path / "kv", memory_bytes=4 * 16384, disk_bytes=8 * 16384) as store:

        def work(seed: int) -> int:
            rng, good = random.Random(seed), 0
            for _ in range(60):
                number = rng.randrange(12)
                if rng.random() < 0.3:
                    store.write_behind(blocks[number])
                    continue
                reader = store.open(names[number])
                if reader is None:
                    continue
                with reader:
                    for layer in rng.sample(range(3), 3):
                        assert bytes(reader.layer(layer)) == run_of(names[number], layer)
                good += 1
            return good

        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(work, range(4))) > 0
        assert store.flush(60)
        stat = store.stat()
        assert (stat.corrupt, stat.failed) == (0, 0)
        assert stat.evicted > 0
        store.check()


class Unusable(NoTier):
    """A tier whose catalogue is out of order."""

    name = "unusable"

    def changes(self) -> Changes:
        raise StoreError("the catalogue cannot be used")

    def put(self, block: EncodedBlock, spare: Spare) -> None:
        raise StoreError("the catalogue cannot be used")


def test_a_tier_that_cannot_be_used_costs_hits_only() -> None:
    trace = Recorder()
    with Store([MemoryTier(10**6, trace), Unusable()], trace=trace) as store:
        store.write_behind(make_block(FIRST))
        assert store.flush(60)
        assert found(store) == [(256, "memory")]
        with pytest.raises(StoreError):
            store.put(make_block(SECOND))
        assert store.stat().failed > 0
        assert trace.count("store.failed") > 0


def test_nothing_is_found_where_nothing_is_kept() -> None:
    with Store([NoTier()]) as store:
        store.put(make_block(FIRST))
        store.write_behind(make_block(SECOND))
        assert found(store) == []
        assert store.open(FIRST) is None
        store.check()


def test_the_store_pulls_in_no_tensors() -> None:
    code = "import sys, kdn.store; print(sorted({'torch'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"
