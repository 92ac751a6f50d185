"""The store as its callers see it: match, open, put, put_behind, stat."""

from __future__ import annotations

from pathlib import Path

from kdn.core import EXACT, Cause, Recipe
from kdn.store import Store, open_store
from kdn.trace import Recorder
from tests.store.helpers import MODEL, block_id, make_block, run_of

PROMPT = tuple(range(300))
FIRST = block_id(PROMPT[:256])
SECOND = block_id(PROMPT[256:], PROMPT[:256])


def found(store: Store, tokens: tuple[int, ...] = PROMPT) -> list[tuple[int, str]]:
    match = store.match(MODEL, EXACT, "", tokens)
    return [(hit.num_tokens, hit.tier) for hit in match.hits]


def test_what_was_put_is_found_and_equal_after_a_restart(tmp_path: Path) -> None:
    with open_store(tmp_path / "kv", disk_bytes=10**9) as store:
        store.put(make_block(FIRST))
        store.put_behind(make_block(SECOND))
        assert found(store) == [(256, "memory"), (44, "memory")]
        assert store.flush(10)
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
        assert bytes(reader.parts(1)[0]) == run[: 100 * 32]


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
