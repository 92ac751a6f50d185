"""The blending benchmarks: their arithmetic by hand, and the whole on the real model."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdn.bench import BenchOptions, load_bench
from kdn.bench.blend.arms import HALF, LEAN, OURS, WHOLE, BottomRight, chosen_arms, default_way
from kdn.bench.blend.layers import layer_rows
from kdn.bench.blend.load import Point, rate_at, zipf_order
from kdn.bench.blend.prompts import questions
from kdn.bench.common.scores import geometric, holds_all, interval, rouge_l, word_f1
from kdn.calibration.key_bias import key_bias_share
from kdn.config import BlendConfig
from kdn.errors import BadInput
from kdn.model.attention import AttentionSlice, TorchAttention
from kdn.reuse.blend import AnchoredRows

EVERY_KEY = {
    "ttft_speedup",
    "ratio",
    "kl_full_noise",
    "kl_blend",
    "kl_gain_naive",
    "kl_gain_random",
    "kl_gain_hkvd",
    "agreement_share",
    "f1_full",
    "f1_blend",
}


def test_words_are_compared_as_squad_does() -> None:
    assert word_f1("The Exeter College.", ["exeter college"]) == 1.0
    assert word_f1("Exeter, Oxford", ["Exeter College", "Oxford"]) == pytest.approx(0.6667)
    assert word_f1("no\nExeter College", ["Exeter College"]) == 0.0


def test_summaries_are_compared_by_what_comes_in_the_same_order() -> None:
    """Three words of four and of three: 2 * 3 / 7."""
    assert rouge_l("budget was then raised", ["budget was raised"]) == pytest.approx(0.8571)
    assert rouge_l("raised was budget", ["budget was raised"]) == pytest.approx(0.3333)
    assert rouge_l("", ["budget"]) == 0.0


def test_ways_are_chosen_by_name_and_ratio_and_naive_reuse_comes_once() -> None:
    found = chosen_arms(("naive", "hkvd", "ours"), (0.15, 0.3))
    assert [arm.key.rpartition("@")[2] for arm in found] == ["0.0", "0.15", "0.15", "0.3", "0.3"]
    assert [arm.bias_share for arm in found] == [0.0, 0.0, HALF, 0.0, HALF]
    assert len({arm.key for arm in chosen_arms(LEAN, (0.15,))}) == len(LEAN)
    with pytest.raises(BadInput, match="no way of blending 'best'"):
        chosen_arms(("best",), (0.15,))


def test_anchors_are_compared_beside_the_look_that_they_replace() -> None:
    found = chosen_arms(("ours", "layer", "anchors", "whole-anchors"), (0.15,))
    assert [arm.bias_share for arm in found] == [HALF, HALF, HALF, 1.0]
    rules = [arm.rule for arm in found[1:]]
    assert all(isinstance(rule, AnchoredRows) for rule in rules)
    assert [rule.span == 1 for rule in rules if isinstance(rule, AnchoredRows)] == [
        True,
        False,
        False,
    ]


def test_a_needle_is_found_where_it_stands_in_the_answer() -> None:
    assert holds_all("It is 62D60E93-6198.", ["62d60e93-6198"]) == 1.0
    assert holds_all("It is 62d60e93.", ["62d60e93-6198"]) == 0.0
    assert holds_all("one and two", ["one", "three"]) == 0.5


def profiled(name: str, **ways: tuple[float, float]) -> dict[str, Any]:
    """A prompt of a profile, by way KL and the attention caught."""
    return {
        "name": name,
        "ways": {
            way.replace("_at_", "@"): {"kl": kl, "kl32": kl, "mass": mass}
            for way, (kl, mass) in ways.items()
        },
    }


def test_layers_are_compared_with_the_look_prompt_by_prompt() -> None:
    """Twice as close on one prompt and half as close on the other is as close."""
    found = [profiled("a", look=(0.4, 0.8), all_at_3=(0.2, 0.7))]
    found.append(profiled("b", look=(0.1, 0.9), all_at_3=(0.2, 0.5)))
    look, other = layer_rows(found, "look")
    assert (look["layer"], look["closer than the look"]) == (None, 1.0)
    assert (other["way"], other["layer"], other["prompts"]) == ("all", 3, 2)
    assert other["attention caught"] == pytest.approx(0.6)
    assert other["closer than the look"] == pytest.approx(1.0)


def test_the_default_way_is_judged_as_the_settings_have_it() -> None:
    for model, way in (("smollm2-135m", WHOLE), ("another", OURS)):
        (arm,) = (
            a for a in chosen_arms(("ours", "whole"), (0.15,)) if a.name == default_way(model)
        )
        assert (arm.name, arm.bias_share) == (way, key_bias_share(model, BlendConfig().key_bias))


def test_gains_are_geometric_and_held_above_the_floor() -> None:
    assert geometric([(4.0, 1.0), (1.0, 1.0)])[0] == pytest.approx(2.0)
    assert geometric([(1e-9, 1e-7)])[0] == pytest.approx(1.0)


def test_an_interval_holds_its_mean_and_narrows_to_nothing_for_equal_values() -> None:
    mean, low, high = interval([0.0, 1.0] * 50)
    assert low < mean == 0.5 < high
    assert high - low == pytest.approx(0.2, abs=0.05)
    assert interval([3.0, 3.0]) == (3.0, 3.0, 3.0)


def test_the_shipped_questions_have_eight_documents_and_repeat_themselves() -> None:
    one, two = questions(None, 5, 2)
    assert len(one.documents) == 8
    assert one.answers[0] in " ".join(one.documents)
    assert (one, two) == tuple(questions(None, 5, 2))
    assert one.documents != two.documents


def test_a_set_that_is_too_small_is_gone_through_in_another_order(tmp_path: Path) -> None:
    texts = [{"text": f"{name} wrote it"} for name in ("Ada", *"bcdefghij")]
    record = {"ctxs": texts, "question": "who?", "answers": ["Ada"]}
    (tmp_path / "public.jsonl").write_text(json.dumps(record))
    first, second = questions(tmp_path, 0, 2)
    assert len(first.documents) == len(second.documents) == 8
    assert "Ada wrote it" in first.documents
    assert "Ada wrote it" in second.documents
    assert first.name != second.name
    turns = [{"speaker": "Ann", "content": "We raise the budget. " * 500}]
    query = {"query": "Why?", "answer": "So.", "relevant_text_span": [["0", "0"]]}
    meeting = {"meeting_transcripts": turns, "specific_query_list": [query]}
    (tmp_path / "public.jsonl").write_text(json.dumps(meeting))
    (asked,) = questions(tmp_path, 0, 1)
    assert (len(asked.documents), asked.measure) == (8, "summary")
    (tmp_path / "public.jsonl").write_text('{"odd": 1}')
    with pytest.raises(BadInput, match="not known"):
        questions(tmp_path, 0, 1)


def test_the_released_mask_lets_a_lone_early_row_see_what_comes_after_it() -> None:
    """Row 0 of three columns stands alone: rightly it sees itself; misaligned, it sees all three."""
    k, v = torch.zeros(1, 1, 8, 4), torch.zeros(1, 1, 4, 8)
    part = AttentionSlice(0, 2, torch.tensor([0, 2]), k, v)
    tables = torch.ones(2, 4), torch.zeros(2, 4)
    fresh = torch.tensor([[1.0] * 4, [3.0] * 4]).unsqueeze(1)
    found = {}
    for name, attention in (("right", TorchAttention()), ("released", BottomRight())):
        bound = attention.bind([replace(part, suffix_k=k.clone(), suffix_v=v.clone())], *tables)
        q = bound.place(0, fresh.clone(), fresh.clone(), fresh.clone())
        found[name] = bound.attend(0, torch.zeros_like(q), None)[:, 0].tolist()
    assert found["right"] == pytest.approx([1.0, 4 / 3])
    assert found["released"] == pytest.approx([0.5, 4 / 3])


def test_small_numbers_are_drawn_more_often() -> None:
    draw = random.Random(0)
    seen = Counter(k for _ in range(500) for k in zipf_order(draw, 20, 3))
    assert seen[0] > seen[5] > seen[19]
    assert sorted(zipf_order(draw, 4, 4)) == [0, 1, 2, 3]


def test_the_rate_at_a_latency_lies_between_its_neighbours() -> None:
    points = [Point(1.0, 1.0, 1.0), Point(2.0, 3.0, 3.0)]
    assert rate_at(points, 2.0, 9.0) == 1.5
    assert rate_at(points, 0.5, 9.0) == 0.5
    assert rate_at(points, 30.0, 2.5) == 2.5


@pytest.mark.model
@pytest.mark.slow
def test_the_benchmark_fills_every_key(smollm2: Path, model_cache: Path, tmp_path: Path) -> None:
    options = BenchOptions(
        model=str(smollm2),
        home=model_cache,
        quick=True,
        only="quality",
        rows=tmp_path / "rows.jsonl",
        threads=torch.get_num_threads(),
    )
    result = load_bench("blend")(options)
    assert set(result.summary) >= EVERY_KEY
    assert (result.summary["kl_gain_naive"] or 0) > 1
    assert result.summary["kl_full_noise"] == pytest.approx(0, abs=1e-4)
    again = load_bench("blend")(options)
    assert again.summary == result.summary, "nothing is judged twice"
