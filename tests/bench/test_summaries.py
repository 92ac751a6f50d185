"""What a benchmark concludes from its rows: every ratio, interval and absent key by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from tests.bench.test_work import CONFIG

from kdn.bench import BenchOptions
from kdn.bench.blend.arms import (
    HALF,
    NAIVE,
    NOISE,
    OURS,
    PROBES,
    RANDOM,
    RATIO,
    WHOLE,
    Known,
    arms,
    chosen_arms,
)
from kdn.bench.blend.blend import (
    _curves,
    _gains,
    _lean,
    _notes,
    _page,
    _pairs,
    _quality_rows,
    _speedup,
    _timing_rows,
)
from kdn.bench.blend.blend import _summary as blend_summary
from kdn.bench.blend.lab import kl
from kdn.bench.blend.prompts import BlendPrompt
from kdn.bench.blend.quality import _ranks, judged_before
from kdn.bench.blend.timing import BLEND, DISK, FULL_TIME, LAYER, Timed, longer
from kdn.bench.common.memory import peak_bytes
from kdn.bench.common.result import Row
from kdn.bench.common.scores import interval
from kdn.bench.engine.engine import (
    TTFT,
    _median_ratio,
    _ratio_cells,
    _share,
    figure_of,
)
from kdn.bench.engine.floors import CEILING
from kdn.bench.engine.lineup import LLAMA, VLLM, start_rival
from kdn.bench.engine.lineup import OURS as KDN
from kdn.bench.jobs.mil import CHUNKED, DROP, HYBRID, _counted
from kdn.bench.jobs.mil import WHOLE as WHOLE_KV
from kdn.bench.knowledge.facts import document, invent
from kdn.bench.knowledge.knowledge import NOTHING, PROMPT, STORED, TUNED, _row, _Way
from kdn.bench.knowledge.knowledge import _summary as knowledge_summary
from kdn.bench.l4s.l4s import _captured_cut, _error_cut, _mean, _plain, _real_cut
from kdn.bench.l4s.l4s import _summary as l4s_summary
from kdn.bench.l4s.prediction import EITHER, captured
from kdn.bench.store.stack import FULL, MEMORY, _documents, _reused_share
from kdn.bench.store.stack import _speedup as stack_speedup
from kdn.core import ALL_ROWS, Plan, Usage
from kdn.errors import BadInput, EngineFailed
from kdn.reuse.blend import BlendLayout

NAIVE_KEY, OURS_KEY, RANDOM_KEY = f"{NAIVE}@0.0", f"{OURS}@{RATIO}", f"{RANDOM}@{RATIO}"


# --- blending --------------------------------------------------------------------------------


def judged(name: str, naive: float, ours: float, **more: Any) -> dict[str, Any]:
    """A prompt judged by KL alone; the answer position and the 32 after it alike."""
    kls = {NAIVE_KEY: naive, OURS_KEY: ours, RANDOM_KEY: 2 * ours}
    found = {arm: {"kl": x, "kl32": x, "agree": int(x < 0.1)} for arm, x in kls.items()}
    return {"name": name, "arms": found} | more


TWO = [judged("a", 0.8, 0.1), judged("b", 0.4, 0.2)]


def test_gains_over_naive_are_paired_by_prompt() -> None:
    """8 and 2 times closer: 4 in the geometric mean. Of 1.2 nats 0.3 are left: 75 % repaired."""
    assert _pairs(TWO, NAIVE_KEY, OURS_KEY, "kl") == [(0.8, 0.1), (0.4, 0.2)]
    row = _gains(TWO, OURS_KEY)
    assert row["closer than naive"] == pytest.approx(4)
    assert row["repaired"] == pytest.approx(0.75)
    assert row["closer than naive, interval"] == "2.00-8.00"
    assert _gains(TWO, NAIVE_KEY) == {}
    alone = [{"name": "a", "arms": {OURS_KEY: {"kl": 0.1, "kl32": 0.1, "agree": 1}}}]
    assert _gains(alone, OURS_KEY) == {}, "naive reuse was not asked for"
    summary = blend_summary(TWO, {}, OURS_KEY)
    assert (summary["kl_naive"], summary["kl_blend"]) == pytest.approx((0.6, 0.15))
    assert summary["kl_gain_random"] == pytest.approx(2)
    assert (summary["agreement_share"], summary["kl_gain_hkvd"]) == (0, None)
    assert set(blend_summary([], {}, OURS_KEY).values()) == {None, RATIO}


def test_what_could_replace_the_default_is_told_as_times_its_kl() -> None:
    """Half as much on one prompt and four times on the other: 1.41 in the geometric mean."""
    layer = next(arm for arm in chosen_arms(PROBES, (RATIO,)) if arm.bias_share == HALF)
    found = [judged("a", 0.8, 0.2), judged("b", 0.4, 0.1), judged("c", 0.4, 0.1)]
    for one, kl_layer in zip(found[:2], (0.1, 0.4), strict=True):
        one["arms"][layer.key] = {"kl": kl_layer}
    told = [line for line in _notes(found, OURS_KEY) if "times the default's" in line]
    interval_told = "(95 % bootstrap interval over 2 prompts 0.50-4.00)"
    assert told == [
        f"KL at the answer position with {layer.name} is 1.41 times the default's {interval_told}."
    ]
    alone = [{"name": "a", "arms": {layer.key: {"kl": 0.1}}}]
    assert not any("times the default's" in line for line in _notes(alone, OURS_KEY))


def test_an_arm_that_few_prompts_have_is_told_of_these_alone() -> None:
    """Only the second prompt ran the noise floor, whose F1 was 1."""
    rare = judged("b", 0.4, 0.2)
    rare["arms"][f"{NOISE.name}@1.0"] = {"kl": 1e-7, "kl32": 1e-7, "agree": 1, "f1": 1.0}
    rows = {row["way"]: row for row in _quality_rows([TWO[0], rare])}
    assert rows[OURS]["prompts"] == 2
    assert (rows[NOISE.name]["prompts"], rows[NOISE.name]["F1 interval"]) == (1, "1.000-1.000")
    assert rows[NOISE.name]["closer than naive"] == pytest.approx(0.4 / 1e-4), "held above 1e-4"
    assert (rows[NAIVE]["F1"], rows[NAIVE]["rows computed"]) == (None, None)


def test_a_curve_is_drawn_of_ways_that_ran_at_every_ratio() -> None:
    one = judged("a", 0.8, 0.1)
    assert _curves([one], "kl")[0] == {}
    one["arms"][f"{OURS}@0.3"] = {"kl": 0.05}
    curves, intervals, count = _curves([one], "kl")
    assert curves == {OURS: [(0.0, 0.8), (0.15, 0.1), (0.3, 0.05)]}
    assert (intervals[OURS][0], count) == ((0.8, 0.8), 1), "one prompt has no spread"


def test_the_main_ways_are_compared_at_equal_budgets() -> None:
    """At 15 % five rules choose; naive and key bias alone choose no row at all."""
    main = arms(cast("Any", None), cast("Any", None), "main")
    by_ratio = {ratio: [arm for arm in main if arm.ratio == ratio] for ratio in (0.0, RATIO, 0.3)}
    assert [len(found) for found in by_ratio.values()] == [2, 6, 2]
    assert len({arm.key for arm in main}) == len(main) == 10
    noise = arms(cast("Any", None), cast("Any", None), "noise")
    assert noise == [*main, NOISE]
    assert {arm.bias_share for arm in main if arm.name == WHOLE} == {1.0}


def test_an_oracle_takes_the_best_rows_of_its_budget() -> None:
    """Eight reused columns at 15 %: 1.2, so two rows; the question's two are computed anyway."""
    layout = BlendLayout(12, 2, ((2, 6), (6, 10)), 10)
    worth = torch.tensor([9.0, 9, 1, 5, 2, 0, 7, 3, 0, 1, 9, 9])
    base = Plan(tuple(range(12)), rows=(ALL_ROWS, ALL_ROWS))
    plan = Known(worth)(base, layout, layout.budget(RATIO))
    assert layout.budget(RATIO) == 2
    assert cast("Any", plan.rows[0]).positions == (3, 6, 10, 11)


def test_divergence_by_hand() -> None:
    """KL of (1/2, 1/2) to (1/4, 3/4): half the log of 2 and half that of 2/3, or log(4/3) / 2."""
    full = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
    other = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log()
    assert kl(full, other).tolist() == pytest.approx([np.log(4 / 3) / 2, 0.0], abs=1e-7)


def test_layers_agree_by_rank_and_not_by_size() -> None:
    """Layer 0 is left out; 1 and 2 rank their rows alike, 3 the other way round."""
    deviation = torch.tensor([[5.0, 1, 9], [1, 2, 3], [1, 20, 300], [3, 2, 1]])
    found = _ranks(deviation)
    assert found == {"neighbours": [1.0, -1.0], "with_first": [1.0, 1.0, -1.0]}


def test_an_interval_of_two_values_reaches_both() -> None:
    assert interval([1.0, 3.0]) == (2.0, 1.0, 3.0)
    assert interval([1.0, 3.0], seed=1)[0] == 2.0


def test_rows_of_another_benchmark_are_refused(tmp_path: Path) -> None:
    asked = [BlendPrompt("a", ("text",), "why?", ("so",))]
    rows = tmp_path / "rows.jsonl"
    assert judged_before(asked, rows) == []
    rows.write_text('{"name": "a", "arms": {}}\n{"name": "b", "arms": {}}\n')
    assert judged_before(asked, rows) == [{"name": "a", "arms": {}}]
    for other in ('{"query": "a"}\n', "[1, 2]\n"):
        rows.write_text(other)
        with pytest.raises(BadInput, match="no rows of this benchmark; give another file"):
            judged_before(asked, rows)


def test_half_a_last_row_is_judged_again(tmp_path: Path) -> None:
    """A full disk or a power cut leaves one; the rows before it stay."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"name": "a", "arms": {}}\n{"name": "a", "ar')
    asked = [BlendPrompt("a", ("text",), "why?", ("so",))]
    assert judged_before(asked, rows) == [{"name": "a", "arms": {}}]
    assert rows.read_text() == '{"name": "a", "arms": {}}\n'


def test_a_page_and_the_ways_are_named_by_what_was_asked() -> None:
    assert (
        _page(BenchOptions(model="/x/tiny.gguf", data=Path("/d/musique"))) == "blend-tiny-musique"
    )
    assert _page(BenchOptions()) == "blend-smollm2-135m-shipped"
    assert _lean(BenchOptions()) is None
    assert {arm.ratio for arm in _lean(BenchOptions(arms=("hkvd",))) or ()} == {RATIO, 0.3}
    assert [arm.ratio for arm in _lean(BenchOptions(arms=("ours",), ratios=(0.4,))) or ()] == [0.4]


def test_a_speedup_is_over_prompts_in_pairs() -> None:
    """Twice and eight times as fast: 4."""
    samples = {FULL_TIME: [2.0, 8.0], BLEND: [1.0, 1.0], DISK: [2.0, 8.0]}
    timed = {"": Timed(100.0, samples, {}, {}, "float32")}
    assert _speedup(timed, "", BLEND) == pytest.approx(4)
    assert _speedup(timed, "", DISK) == pytest.approx(1)
    assert _speedup(timed, ", long", BLEND) is None
    assert _speedup(timed, "", LAYER) is None, "it was not asked for"


def test_what_could_replace_the_default_is_compared_with_it_round_by_round() -> None:
    """2 s and 3 s where the default took 2.2 and 3: 1.1 and 1 times sooner; 5 in the median of the full."""
    samples = {FULL_TIME: [10.0, 15.0], BLEND: [2.2, 3.0], LAYER: [2.0, 3.0]}
    usages = dict.fromkeys(samples, Usage(100, 1, recomputed=15))
    loaded = dict.fromkeys(samples, 0)
    rows = {
        row["way"]: row
        for row in _timing_rows({"": Timed(100.0, samples, usages, loaded, "float32")})
    }
    assert rows[LAYER]["speedup"] == pytest.approx(5)
    assert rows[LAYER]["sooner than the default"] == pytest.approx(1.05)
    assert rows[LAYER]["its spread"] == "1.00-1.10"
    assert "its spread" not in rows[BLEND]


def test_longer_prompts_have_six_documents_of_the_next() -> None:
    one, two = (BlendPrompt(n, tuple(f"{n}{k}" for k in range(8)), "?", ("!",)) for n in "ab")
    first, last = longer([one, two])
    assert first.documents == (*one.documents, *two.documents[:6])
    assert last.documents[8:] == one.documents[:6]


# --- engine, memory, stack -------------------------------------------------------------------


def test_a_share_of_the_ceiling_is_of_the_same_rounds() -> None:
    """Ours takes 4 and 10 ms a token where the ceiling reads in 2 and 5: half of it, for one unit."""
    samples = {KDN: [0.004, 0.010], CEILING: [0.002, 0.005]}
    assert _share(samples, 1.0) == pytest.approx(0.5)
    assert _share({KDN: [0.004]}, 1.0) is None
    assert _median_ratio(samples, KDN, CEILING) == pytest.approx(0.5)
    assert _ratio_cells({KDN: [1.0, 2.0, 1.0], VLLM: [3.0, 4.0, 1.5]}, KDN, VLLM) == {
        "speedup": 2.0,
        "spread": "1.50-3.00",
    }
    assert _ratio_cells(samples, KDN, VLLM) == {}


def test_the_absent_have_no_line() -> None:
    """vLLM takes 5 ms where kdn takes 4; decoding has no place in this figure."""
    rows: list[Row] = [
        {"measure": TTFT, "tokens": 96, KDN: 2.0},
        {"measure": TTFT, "tokens": 160, KDN: 4.0, VLLM: 5.0},
        {"measure": "decoding, tokens/s", "tokens": 160, KDN: 30.0, VLLM: 40.0},
    ]
    assert figure_of(rows).lines == {VLLM: [(160.0, 1.25)]}


def test_a_rival_without_its_environment_says_how_to_build_it(tmp_path: Path) -> None:
    options = BenchOptions(model=str(tmp_path), rivals=tmp_path / "rivals")
    for name in (VLLM, LLAMA):
        with pytest.raises(EngineFailed, match="rivals is not there; `make rivals` builds it"):
            start_rival(name, options, tmp_path, tmp_path)


def test_the_bytes_of_a_token_grow_by_what_an_arm_keeps() -> None:
    """CONFIG has two layers with K and V of two values of 2 bytes each: 8 bytes a layer and token."""
    found = {arm.name: _counted(CONFIG, arm, 2) for arm in (WHOLE_KV, CHUNKED, DROP, HYBRID)}
    assert found[CHUNKED.name] == 16
    assert found[WHOLE_KV.name] - found[DROP.name] == 8
    assert found[HYBRID.name] <= found[DROP.name]
    one_call = {arm.name: _counted(CONFIG, arm, 2, 1000.0) for arm in (WHOLE_KV, DROP)}
    assert one_call[WHOLE_KV.name] - one_call[DROP.name] == 8
    assert one_call[DROP.name] == 8 + 2 * CONFIG.hidden_size + 1000 + 8 * CONFIG.head_dim + 16


def test_memory_that_is_given_back_is_not_counted_twice() -> None:
    """Three times 4,000 bytes one after another need room for one of them, at most two."""

    def work() -> None:
        for _ in range(3):
            kept = torch.zeros(1000)
            del kept

    assert 4000 <= peak_bytes(work) < 8000
    assert peak_bytes(lambda: [torch.zeros(1000) for _ in range(3)]) >= 12_000


def test_a_way_of_the_stack_is_compared_with_its_own_baseline() -> None:
    samples = {FULL: [2.0, 3.0, 4.0], MEMORY: [1.0, 1.0, 1.0]}
    assert stack_speedup(samples, MEMORY) == 3.0
    assert stack_speedup(samples, FULL) is None
    usages = [Usage(100, 16, exact=100), Usage(300, 16, exact=0)]
    assert _reused_share(usages) == 0.25
    rounds = [_documents(number) for number in range(4)]
    texts = {one.text for pair in rounds for one in pair}
    assert len(texts) == 8, "no round sees the documents of another"
    assert all(len(text) == 4000 for text in texts)


# --- knowledge -------------------------------------------------------------------------------


def test_ways_of_adding_knowledge_are_compared_by_pairs() -> None:
    """10 s of training against 2 s of prefill; 4 and 6 times as soon; answers at half the cost."""
    ways = {
        NOTHING: _Way(0.0, [0.1], [0.2], [0.0], [0.1]),
        TUNED: _Way(10.0, [0.1, 0.1], [0.2, 0.2], [0.0, 1.0], [0.2, 0.6]),
        PROMPT: _Way(0.0, [0.8, 1.2], [1.5, 2.5], [1.0, 1.0], [1.0, 0.8]),
        STORED: _Way(2.0, [0.2, 0.2], [1.0, 1.0], [1.0, 1.0], [1.0, 0.8]),
    }
    found = knowledge_summary(ways)
    assert (found["add_speedup"], found["delay_speedup"]) == pytest.approx((5, 5))
    assert found["request_cost_saving"] == pytest.approx(0.5)
    assert (found["f1_tuned"], found["found_tuned"]) == pytest.approx((0.4, 0.5))
    row = _row(PROMPT, ways[PROMPT])
    assert row["first token, ms"] == pytest.approx(1000)
    assert row["cost, $ per 1000 requests"] == pytest.approx(2.0 / 3600 * 0.10 * 1000)
    del ways[TUNED]
    without = knowledge_summary(ways)
    assert without.keys() == found.keys()
    assert {key for key, value in without.items() if value is None} == {
        "add_speedup", "f1_tuned", "found_tuned"
    }  # fmt: skip


def test_a_document_has_a_line_a_fact_in_three_kinds() -> None:
    facts = invent(7, seed=0)
    lines = document(facts).splitlines()
    assert len(lines) == 7
    assert [line.startswith(fact.sentence) for line, fact in zip(lines, facts, strict=True)] == (
        [True] * 7
    )
    assert [fact.sentence.split()[1] for fact in facts[:4]] == [
        "harbour", "lighthouse", "ferry", "harbour",
    ]  # fmt: skip
    assert len(invent(100, seed=0)) == 100, "there are ten by ten places"
    with pytest.raises(ValueError, match=r"[Ss]ample"):
        invent(101, seed=0)


# --- queues ----------------------------------------------------------------------------------


def guessed(on: str, **errors: float) -> list[Row]:
    names = {name.replace("_", " "): error for name, error in errors.items()}
    return [
        {
            "part": "prediction",
            "on": on,
            "predictor": name,
            "mae_ms": error,
            "sharp_mae_ms": 2 * error,
        }
        for name, error in names.items()
    ]


def test_errors_are_cut_from_the_best_plain_predictor() -> None:
    """The best that is neither neural nor a seer errs by 2 ms; the Transformer by 1.5."""
    rows = guessed(EITHER, ewma=2.0, ridge=3.0, transformer=1.5, lstm=1.0, whole_network_known=0.5)
    assert _error_cut(rows, EITHER, "transformer") == pytest.approx(0.25)
    assert _error_cut(rows, EITHER, "whole network known", "sharp_mae_ms") == pytest.approx(0.75)
    assert _error_cut(rows, "elsewhere", "transformer") is None
    assert _captured_cut(rows) is None
    assert captured(np.zeros(1, np.float32), None, 1, 1) == []


def test_neighbouring_runs_of_the_router_are_compared() -> None:
    """10 to 5 ms and 20 to 15: cuts of 50 and 25 %."""
    rows = [
        {"part": "real", "kind": "video", "policy": policy, "p99_ms": p99}
        for policy, p99 in (("all-L", 10.0), ("swift", 5.0), ("all-L", 20.0), ("swift", 15.0))
    ]
    assert _real_cut(rows) == pytest.approx(0.375)
    assert _real_cut([]) is None


def test_what_was_not_simulated_is_none_and_keeps_its_key() -> None:
    empty = l4s_summary([], 12.0)
    assert {key for key, value in empty.items() if value is not None} == {"inference_us"}
    rows = [
        {"part": "policy", "list": "frozen", "scenario": "a", "weight": "1/16", "policy": policy}
        | {"p99_ms": p99, "goodput_mbps": 5.0, "others_mbps": 4.0, "others_p99_ms": others}
        for policy, p99, others in (("all-L", 10, 10), ("swift", 6, 11), ("oracle", 5, 12))
    ]
    found = l4s_summary(rows, 12.0)
    assert found.keys() == empty.keys()
    assert (found["p99_cut"], found["oracle_p99_cut"]) == pytest.approx((0.4, 0.5))
    assert found["oracle_share"] == pytest.approx(0.8)
    assert found["others_p99_excess"] == pytest.approx(0.1)
    assert found["transient_p99_cut"] is None


def test_runs_of_several_seeds_become_one_row() -> None:
    runs = [
        {"policy": "swift", "p99_ms": 4.0, "extent": 1},
        {"policy": "swift", "p99_ms": 6.0, "extent": 2},
    ]
    assert _mean(runs) == {"policy": "swift", "p99_ms": 5.0, "extent": 1.5}
    plain = _plain({"a": np.float64(0.5), "b": np.int64(3), "c": "text"})
    assert [type(value) for value in plain.values()] == [float, int, str]
