"""Policies against the optimum, workloads against their bill: traces of a few blocks, sums by hand."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.store.traces.written import write_trace

from kdn.bench.common.result import BenchOptions
from kdn.bench.store.cost import _Cell, _cell_row, _paper_error, _predicted, _ways, figure_of
from kdn.bench.store.far import start_redis
from kdn.bench.store.policies import _measure, _rate, _summary, block_trace, made_up_chats
from kdn.clock import ManualClock
from kdn.core import JctModel
from kdn.cost import BytesPerSecond, Speed
from kdn.cost.fitted import FittedSpeed
from kdn.errors import BadInput
from kdn.store.traces.recording import TraceRequest
from kdn.store.traces.simulate import OPTIMUM, served_by

OPTIONS = BenchOptions(clock=ManualClock())


def asked(at_s: float, *names: str) -> TraceRequest:
    return TraceRequest(timestamp=1000 * at_s, input_length=512 * len(names), hash_ids=names)


LOOP = [asked(n, "abc"[n % 3]) for n in range(9)]
"""Three blocks in turn, three times: with room for two, LRU always drops what comes next."""


def test_lru_never_hits_a_loop_that_is_one_block_too_long_and_the_optimum_does() -> None:
    """Belady keeps a and b: of the six uses after the first three, it misses c's two only."""
    lru, best = (_measure(OPTIONS, LOOP, policy, 2) for policy in ("lru", OPTIMUM))
    assert (lru.hit_rate, lru.late_hit_rate, lru.written_share) == (0, 0, 1)
    assert best.hit_rate == 4 / 9
    assert best.late_hit_rate == 3 / 5, "after 4 s: b, c, a, b, c"
    assert best.written_share == 2 / 9
    assert _measure(OPTIONS, LOOP, "lru", 3).hit_rate == 6 / 9


def test_only_leading_blocks_are_hits() -> None:
    """The second request begins with another block, so what it has in common does not count."""
    served = served_by(
        "lru", [asked(0, "a", "b"), asked(1, "x", "b"), asked(2, "a", "c")], 1, 10**6
    )
    assert [one.hit_blocks for one in served] == [0, 0, 1]
    assert _rate(served) == 1 / 6
    assert _rate([]) == 0


def test_the_gap_is_what_ours_closes_of_the_way_to_the_optimum() -> None:
    """LRU 20 %, ours 26 %, the optimum 40 %: 0.06 of 0.20; where LRU is best there is no gap."""
    rates = {("lru", 1): 0.2, ("value", 1): 0.26, (OPTIMUM, 1): 0.4}
    rates |= {("lru", 2): 0.5, ("value", 2): 0.4, (OPTIMUM, 2): 0.6}
    rates |= {(policy, 3): 0.7 for policy in ("lru", "value", OPTIMUM)}
    found = _summary(rates, (1, 2, 3))
    assert found["value_diff_2k"] == pytest.approx(0.06)
    assert found["gap_share_2k"] == pytest.approx(0.3)
    assert found["gap_share_8k"] == pytest.approx(-1.0)
    assert (found["value_diff_30k"], found["gap_share_30k"]) == (0, None)


def test_made_up_chats_share_one_prompt_and_grow() -> None:
    requests = made_up_chats(seed=3, chats=30)
    assert {request.hash_ids[0] for request in requests} == {"system"}
    assert [r.timestamp for r in requests] == sorted(r.timestamp for r in requests)
    chats: dict[object, list[TraceRequest]] = {}
    for request in requests:
        assert request.input_length == 512 * len(request.hash_ids)
        chats.setdefault(str(request.hash_ids[1]).split(".")[0], []).append(request)
    assert len(chats) == 30
    for turns in chats.values():
        for before, after in itertools.pairwise(turns):
            assert after.hash_ids[: len(before.hash_ids)] == before.hash_ids
    assert requests == made_up_chats(seed=3, chats=30)


def test_a_short_trace_is_not_shortened_to_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write_trace(path, LOOP[:3])
    quick = BenchOptions(data=path, quick=True)
    assert [len(block_trace(one)[0]) for one in (BenchOptions(data=path), quick)] == [3, 1]
    assert block_trace(quick)[1] == "t.jsonl"
    assert block_trace(BenchOptions(data=tmp_path))[1] == "made up", "the folder has no trace"


def test_a_trace_without_names_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n")
    with pytest.raises(BadInput, match="names no blocks"):
        block_trace(BenchOptions(data=path))


def test_a_workload_is_judged_by_its_median() -> None:
    """Predicted 12 s, measured 8, 10 and 11 s: 20 % off, and the machine's spread is 30 %."""
    cell = _Cell(500, 2, 10, "stored", 12.0, (8.0, 11.0, 10.0))
    assert (cell.median_s, cell.error, cell.spread) == (10.0, 0.2, 0.3)
    computed = _Cell(500, 2, 10, "computed", 5.0, (4.0,))
    figure = figure_of([_cell_row(cell), _cell_row(computed)])
    assert figure.lines == {"stored": [(10.0, 1.2)], "computed": [(4.0, 1.25)]}


def test_long_workloads_are_run_with_stored_kv_alone() -> None:
    assert _ways((1000, 12, 1)) == ("stored", "computed")
    assert _ways((1000, 13, 1)) == ("stored",)


def test_a_prediction_is_what_prefill_load_and_decoding_take() -> None:
    """10 ms a token, KV of 100 B at 10 kB/s: 500 tokens are computed in 5 s and loaded in 5 s.

    The question has 48 tokens: 0.48 s. Two uses, one token out each: twice (5 + 0.48) s computed.
    """
    jct = JctModel(pass_s=0.0, token_s=0.01, pair_s=0.0, cached_s=0.0)
    fitted = FittedSpeed(Speed(jct, decode_token_s=0.0, token_bytes=100), 0.25, BytesPerSecond(1e4))
    one, two = (_predicted(fitted, 500, uses, 1) for uses in (1, 2))
    assert one["computed"] == pytest.approx(5.48)
    assert two["computed"] == pytest.approx(2 * 5.48)
    assert two["stored"] - one["stored"] == pytest.approx(0.25 + 5 + 0.48)


def test_the_papers_table_is_met_within_two_per_cent() -> None:
    assert 0 < _paper_error() < 0.02


def test_a_redis_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    absent: dict[str, str] = {}
    with ExitStack() as stack:
        assert start_redis(tmp_path, stack, absent) is None
    assert absent == {"redis": "redis-server is not installed"}
