"""The steering benchmark: its sums by hand, its items, and the whole on a tiny model."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdn.bench import BenchOptions, load_bench
from kdn.bench.engine.lineup import opened
from kdn.bench.steer.arms import ARMS
from kdn.bench.steer.case import random_like
from kdn.bench.steer.items import SteerItem, steer_items
from kdn.bench.steer.lab import SteerLab
from kdn.bench.steer.selections import SELECTIONS
from kdn.bench.steer.steer import _clusters_in_turn
from kdn.bench.steer.sums import (
    TWINS,
    arm_rows,
    chosen_selection,
    clustered,
    reuses_to_pay,
    slower,
    steer_summary,
)
from kdn.bench.steer.verdicts import steer_figures, steer_notes, verdict
from kdn.errors import BadInput

KEYS = {
    "nll_gain",
    "nll_gain_random",
    "f1_diff",
    "nll_gain_look",
    "nll_gain_span",
    "nll_gain_oracle",
    "harm_nll",
    "ttft_cost",
    "ttft_speedup_query_dependent",
}


def judged(cluster: str, plain: float, oracle: float) -> dict[str, Any]:
    arms = {"plain": {"nll": plain, "kl": 0.0}, "oracle": {"nll": oracle, "kl": 0.1}}
    return {"name": f"squad/{cluster}", "cluster": cluster, "chance": 0.1, "arms": arms}


def test_gains_are_paired_and_clusters_are_drawn_whole() -> None:
    """Three items of one article gain 1 each, one of another loses 1: on average a half."""
    items = [judged("a", 3.0, 2.0)] * 3 + [judged("b", 1.0, 2.0)]
    rounds = [{"plain": 1.0, "span": 1.01, "two calls": 3.03, "nothing stored": 4.04}] * 3
    summary = steer_summary(items, [], rounds)
    assert summary.keys() == KEYS
    assert summary["nll_gain_oracle"] == 0.5
    assert summary["nll_gain"] is None
    assert summary["ttft_cost"] == pytest.approx(0.01)
    assert summary["ttft_speedup_query_dependent"] == pytest.approx(3)
    assert clustered(items, lambda _: 2.0) == (2, 2, 2)
    found = clustered(items, lambda one: one["arms"]["plain"]["nll"])
    assert found is not None
    assert found[1:] == (1, 3), "either article may be drawn twice"
    assert clustered(items, lambda _: None) is None
    row = next(row for row in arm_rows(items) if row["arm"] == "oracle")
    assert (row["items"], row["gain"], row["part"]) == (4, 0.5, "all")


def test_random_columns_stand_where_those_stand_that_they_are_for() -> None:
    columns = [(0, 5, 95), ()]
    found = random_like(columns, 100, 2, random.Random(1))
    assert [column // 10 for column in found[0]] == [0, 0, 9]
    assert min(found[0]) >= 2, "no sinks"
    assert found[1] == ()
    assert len(set(found[0])) == 3


def test_two_calls_pay_for_passes_after_so_many_answers() -> None:
    """A prompt from nothing takes 4 s, two calls 2 s more than a span: three passes, six answers."""
    rounds = [{"plain": 1.0, "span": 1.0, "two calls": 3.0, "nothing stored": 4.0}] * 2
    assert reuses_to_pay(3.0, rounds) == 6
    assert reuses_to_pay(3.0, [{"plain": 1.0, "span": 1.0}]) is None, "not timed"
    assert reuses_to_pay(3.0, [one | {"two calls": 0.9} for one in rounds]) is None, "nothing saved"
    assert slower([{"plain": 1.0, "span": 2.0}, {"plain": 2.0, "span": 2.0}], "span") == (1.5, 1, 2)


def test_a_verdict_follows_from_the_interval_and_the_number_of_articles() -> None:
    assert verdict((0.2, 0.1, 0.3), 5) == "gains (+0.200, +0.100 to +0.300)"
    assert verdict((-0.2, -0.3, -0.1), 5).startswith("harms")
    assert verdict((0.1, -0.1, 0.3), 5).startswith("shows no difference")
    assert verdict((0.2, 0.1, 0.3), 4).startswith("is too little to judge")
    assert verdict(None, 0) == "was not judged"


def with_arms(cluster: str, **nll: float) -> dict[str, Any]:
    arms = {name.replace("_", "-"): {"nll": value, "kl": 0.1} for name, value in nll.items()}
    return {"name": f"squad/{cluster}", "cluster": cluster, "chance": 0.1, "arms": arms}


def test_the_selection_is_chosen_on_one_half_and_judged_on_the_other() -> None:
    """On `fit` notes beat their twin by 2, key norms by 1; on `test` notes gain as their twin does."""
    fit = [
        with_arms("a", plain=3, notes=1, notes_random=3, key_norm=1, key_norm_random=2),
    ]
    assert chosen_selection(fit) == "notes"
    assert chosen_selection([]) == "published"
    test = [
        with_arms(str(n), plain=3, oracle=2, notes=2.5, notes_random=2.5, key_norm=0.0)
        for n in range(6)
    ]
    summary = steer_summary(test, fit, [])
    assert (summary["nll_gain"], summary["nll_gain_random"]) == (0.5, 0)
    assert summary["ttft_cost"] is None
    notes = " ".join(steer_notes(test, fit, []))
    assert "6 items of 6 articles or questions are judged: 6 of squad" in notes
    assert "Fewer than the 300" in notes
    assert (
        "`notes` was chosen on the half `fit` (1 items): against plain, on 6 items, it g" in notes
    )
    assert "it gains (+0.500" in notes
    assert "`published`" not in notes, "it was not judged"
    assert "twin it shows no difference (+0.000" in notes
    assert "50 % of the right sentence's gain" in notes
    assert "Stressing the right sentence, by set: squad gains (+1.000" in notes
    assert "Times to the first token were not taken." in notes
    gains, settling = steer_figures(test)
    assert gains.lines == {"oracle, squad": [(0.0, 1.0)]}
    assert gains.intervals == {"oracle, squad": [(1.0, 1.0)]}
    assert settling.lines["oracle"][-1] == (6.0, 1.0)


def test_other_selections_are_told_of_beside_the_chosen_one() -> None:
    fit = [with_arms("a", plain=3, notes=1, notes_random=3)]
    test = [with_arms(str(n), plain=3, published=3.5, published_random=3.25) for n in range(6)]
    notes = " ".join(steer_notes(test, fit, []))
    assert (
        "`notes` was chosen on the half `fit` (1 items): against plain, on 0 items, it w" in notes
    )
    assert "The selection `published`: against plain, on 6 items, it harms (-0.500" in notes
    assert "less its random twin it harms (-0.250" in notes


def test_a_look_is_told_apart_where_it_found_the_right_sentence() -> None:
    """Five questions gain 1 with the answer's sentence, five lose 1 with another."""
    items = []
    for number in range(10):
        found = with_arms(str(number), plain=3, look_always=2 if number < 5 else 4)
        found["arms"]["look-always"]["overlap"] = 1.0 if number < 5 else 0.0
        items.append(found)
    notes = " ".join(steer_notes(items, [], []))
    assert (
        "A look that always acts takes the answer's sentence for 5 items: it gains (+1.000" in notes
    )
    assert "It takes another for 5 items: it harms (-1.000" in notes
    assert "Stressing the nearest sentence takes the answer's sentence for 0 items" in notes


@pytest.mark.parametrize(
    ("ratio", "says"), [(1.0, "is met"), (1.05, "is missed"), (None, "can be neither")]
)
def test_the_aim_for_times_is_met_missed_or_open(ratio: float | None, says: str) -> None:
    slow = [ratio] * 6 if ratio else [0.9, 1.2, 1.0, 1.1, 0.95, 1.15]
    rounds = [{"plain": 1.0, "span": one, "two calls": 3.0} for one in slow]
    assert f"the aim of 2 % more {says}" in " ".join(steer_notes([], [], rounds))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two articles of two paragraphs with a question each."""
    folder = tmp_path / "data" / "squad"
    folder.mkdir(parents=True)
    with (folder / "public.jsonl").open("w") as file:
        for number in range(2):
            text = f"Nothing of note happened before. The harbour has {number + 3} ferries now. It rains."
            asked = {
                "id": f"q{number}",
                "question": "How many ferries?",
                "answers": [{"text": str(number + 3), "answer_start": text.index("ferries") - 2}],
            }
            paragraphs = [{"context": text, "qas": [asked]}, {"context": "Tea is hot.", "qas": []}]
            file.write(json.dumps({"paragraphs": paragraphs}) + "\n")
    for name in ("hotpotqa", "musique"):
        (tmp_path / "data" / name).mkdir()
        (tmp_path / "data" / name / "public.jsonl").write_text("")
    return tmp_path / "data"


def test_halves_share_no_article_and_spans_hold_the_answer(data: Path) -> None:
    test, fit = steer_items(data, "squad")
    assert (test.half, fit.half) == ("test", "fit")
    assert test.cluster != fit.cluster
    ((document, start, stop),) = test.spans
    assert test.documents[document][start:stop].startswith("The harbour has 3 ferries now.")


def test_articles_take_turns_so_that_an_early_end_leaves_some_of_each() -> None:
    """Article a has three contexts, b one, c two."""
    item = SteerItem("squad/1", "a", "fit", (), "?", ("!",), ())
    contexts = [[replace(item, cluster=name, question=str(n))] for n, name in enumerate("aaabcc")]
    found = [(own[0].cluster, own[0].question) for own in _clusters_in_turn(contexts)]
    assert "".join(cluster + question for cluster, question in found) == "a0b3c4a1c5a2"


def test_every_arm_runs_and_a_second_run_judges_nothing_again(
    tiny_model: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    model = str(tiny_model("llama", max_position_embeddings=4096))
    rows, said = tmp_path / "rows.jsonl", list[str]()
    options = BenchOptions(
        model=model, data=data, only="test", rows=rows, threads=1, home=tmp_path, say=said.append
    )
    result = load_bench("steer")(options)
    judged_arms = {row["arm"] for row in result.rows}
    assert judged_arms - {"retrieved-sure"} == {*ARMS, "look"}, "the nearest needs an embedder"
    kept = rows.read_text()
    arms = json.loads(kept.splitlines()[-1])["arms"]
    assert set(TWINS) <= set(arms)
    assert arms["published"]["passes"] == arms["published-random"]["passes"]
    assert 2.5 < arms["published"]["passes"] < 4, "two that score, one that is steered"
    assert 0.5 < arms["passage-twice"]["passes"] < 1, "the passages once more"
    assert 0 < arms["key-norm"].get("passes", 0.0) + arms["self-asked"]["passes"] < 1
    assert "passes" not in arms["look-always"], "nothing is made beforehand"
    for name in SELECTIONS:
        does = arms[name]["kl"] > 0 or "overlap" in arms[name]
        assert does, f"{name} stresses nothing and changes nothing"
    assert result.summary.keys() == KEYS
    assert result.summary["nll_gain_oracle"] is not None
    assert load_bench("steer")(options).summary == result.summary
    assert rows.read_text() == kept
    timing = load_bench("steer")(replace(options, only="timing", pairs=2))
    lines = rows.read_text().splitlines()
    rounds = [json.loads(line)["round"] for line in lines if "round" in line]
    assert len(rounds) == 2
    assert rounds[0].keys() - {"look, acts", "look, does not act"} == {
        "plain",
        "span",
        "two calls",
        "nothing stored",
    }
    assert len(rounds[0]) == 5, "a question's look acts or does not"
    assert timing.summary["ttft_cost"] is not None
    assert timing.summary["ttft_speedup_query_dependent"] is not None
    load_bench("steer")(replace(options, only="timing", pairs=3))
    assert rows.read_text().splitlines()[:-1] == lines, "one round more"
    page = load_bench("steer")(BenchOptions(model="another", only="page", rows=rows))
    name = Path(model).name
    assert (page.model_name, page.page) == (name, f"steer-{name}"), (
        "of the model that was judged, whatever is asked for"
    )
    with pytest.raises(BadInput, match=f"holds rows of {Path(model).name}, not of another"):
        load_bench("steer")(replace(options, model="another"))
    assert page.summary.keys() == KEYS
    assert page.summary["nll_gain_oracle"] == result.summary["nll_gain_oracle"]
    parts = {row["part"] for row in page.rows}
    assert {"all", "squad", "computed beforehand", "time to first token"} <= parts
    assert any("articles or questions are judged" in note for note in page.notes)
    fit = load_bench("steer")(replace(options, only="fit", arms=("key-norm", "key-norm-random")))
    assert any(row["part"] == "fit: squad" for row in fit.rows)
    assert any("`key-norm` was chosen on the half `fit`" in note for note in fit.notes)
    with pytest.raises(BadInput, match="no arm 'best'"):
        load_bench("steer")(BenchOptions(model=model, data=data, arms=("best",)))
    with pytest.raises(BadInput, match="no set 'trivia'; there are squad, hotpotqa, musique"):
        load_bench("steer")(BenchOptions(model=model, data=data, sets=("trivia",)))
    none = load_bench("steer")(replace(options, rows=None, arms=("oracle",), sets=("musique",)))
    assert none.config["items_wanted"] == 0, "all items are of another set"


def test_a_context_that_begins_as_another_is_computed_from_there(
    tiny_model: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    model = str(tiny_model("llama", max_position_embeddings=4096))
    item = steer_items(data, "squad")[0]
    longer = replace(item, documents=(*item.documents, "The ferries are green."))
    with opened(BenchOptions(model=model, threads=1, home=tmp_path)) as service:
        lab = SteerLab(service)
        begun, whole = lab.context(item), lab.make_context(longer)
        found = lab.make_context(longer, begun=begun)
    assert found.held.num_tokens == whole.held.num_tokens > begun.held.num_tokens
    torch.testing.assert_close(found.held.kv, whole.held.kv, atol=0.02, rtol=0.02)


def test_data_must_be_named_and_be_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--data names the folder"):
        load_bench("steer")(BenchOptions())
    with pytest.raises(BadInput, match="a page is made of rows"):
        load_bench("steer")(BenchOptions(only="page"))
    (tmp_path / "rows.jsonl").write_text("[]")
    with pytest.raises(BadInput, match="no rows of this benchmark"):
        load_bench("steer")(BenchOptions(only="page", rows=tmp_path / "rows.jsonl"))
    with pytest.raises(BadInput, match="no such file; give the folder"):
        load_bench("steer")(BenchOptions(data=tmp_path))
