"""The steering benchmark: its sums by hand, its items, and the whole on a tiny model."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdn.bench import BenchOptions, load_bench
from kdn.bench.steer.arms import ARMS
from kdn.bench.steer.case import random_like
from kdn.bench.steer.items import steer_items
from kdn.bench.steer.selections import SELECTIONS, TWINS
from kdn.bench.steer.sums import arm_rows, clustered, steer_summary
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
    summary = steer_summary(items, {"span": 1.01, "two calls": 3.03})
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


def test_every_arm_runs_and_a_second_run_judges_nothing_again(
    tiny_model: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    model = str(tiny_model("llama", max_position_embeddings=4096))
    rows, said = tmp_path / "rows.jsonl", list[str]()
    options = BenchOptions(
        model=model, data=data, only="test", rows=rows, threads=1, home=tmp_path, say=said.append
    )
    result = load_bench("steer")(options)
    assert {row["arm"] for row in result.rows} == set(ARMS)
    kept = rows.read_text()
    arms = json.loads(kept.splitlines()[-1])["arms"]
    assert set(TWINS) <= set(arms)
    assert arms["published"]["passes"] == arms["published-random"]["passes"]
    assert 2.5 < arms["published"]["passes"] < 4, "two that score, one that is steered"
    assert 0.9 < arms["passage-twice"]["passes"] < 2.2, "the passages twice"
    assert 0 < arms["key-norm"].get("passes", 0.0) + arms["self-asked"]["passes"] < 1
    assert "passes" not in arms["look"], "nothing is made beforehand"
    assert all(arms[name]["kl"] > 0 for name in SELECTIONS), "each does something"
    assert result.summary.keys() == KEYS
    assert result.summary["nll_gain_oracle"] is not None
    assert load_bench("steer")(options).summary == result.summary
    assert rows.read_text() == kept
    with pytest.raises(BadInput, match="no arm 'best'"):
        load_bench("steer")(BenchOptions(model=model, data=data, arms=("best",)))


def test_data_must_be_named_and_be_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--data names the folder"):
        load_bench("steer")(BenchOptions())
    with pytest.raises(BadInput, match="is not there"):
        load_bench("steer")(BenchOptions(data=tmp_path))
