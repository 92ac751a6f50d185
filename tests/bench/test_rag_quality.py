"""Judged answers: kept in a file, counted by set and arm, and made with a model over real questions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kdn.bench import BenchOptions
from kdn.bench.rag.quality import JudgedAnswer, QualityRows, quality_rows, quality_summary
from kdn.bench.rag.rag import run
from kdn.errors import BadInput

LINE = {"set": "squad", "question": "Where?", "configuration": "stuff over 1 chunk", "score": 0.5}


def test_an_answer_that_was_kept_is_found_again(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    QualityRows(file, "tiny").keep(LINE)
    found = QualityRows(file, "tiny").find("squad", "Where?", "stuff over 1 chunk")
    assert found == {"model": "tiny", **LINE}
    assert QualityRows(file, "tiny").find("squad", "Where?", "stuff over 2 chunks") is None


def test_answers_of_another_model_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    QualityRows(file, "tiny").keep(LINE)
    with pytest.raises(BadInput, match="answers of tiny, not of large"):
        QualityRows(file, "large")


def judged(arm: str, score: float, recall: float | None, name: str = "squad") -> JudgedAnswer:
    return JudgedAnswer(name, arm, score, score > 0.5, recall, num_chunks=2)


def test_rows_and_summary_by_hand() -> None:
    """Ours scores 1.0 and 0.5 on squad, 0.25 on musique: the mean of the sets is 0.5."""
    ours = "ours, balanced"
    some = [
        judged(ours, 1.0, 1.0), judged(ours, 0.5, None), judged(ours, 0.25, 0.5, "musique"),
        judged("static stuff 2", 0.75, 1.0), judged("static stuff 2", 0.0, 0.0, "musique"),
        judged(ours, 0.1, None, "sec10q"),
    ]  # fmt: skip
    rows = quality_rows(some)
    assert [(row["part"], row["arm"], row["questions"]) for row in rows] == [
        ("squad", ours, 2),
        ("squad", "static stuff 2", 1),
        ("musique", ours, 1),
        ("musique", "static stuff 2", 1),
        ("sec10q", ours, 1),
    ]
    assert (rows[0]["F1"], rows[0]["recall"]) == (0.75, 1.0)
    assert rows[0]["answers that hold a right one"] == 0.5
    assert (rows[0]["low"], rows[0]["high"]) == (0.5, 1.0)
    assert rows[-1]["Rouge-L"] == pytest.approx(0.1)
    assert rows[-1]["recall"] is None
    assert quality_summary(rows) == {
        "f1_ours": 0.5,
        "f1_best_static": 0.375,
        "quality_recall_ours": 0.75,
    }


def test_a_model_answers_and_a_second_run_asks_it_nothing(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    data = tmp_path / "data" / "squad"
    data.mkdir(parents=True)
    asked = {
        "question": "Where is the key?",
        "answers": [{"text": "behind the clock", "answer_start": 20}],
    }
    context = "The brass key hangs behind the clock in the hall. The hall is cold in the winter."
    row = {"title": "Clocks", "paragraphs": [{"context": context, "qas": [asked]}]}
    (data / "public.jsonl").write_text(json.dumps(row) + "\n")
    options = BenchOptions(
        model=str(tiny_model("llama", max_position_embeddings=4096)),
        data=data.parent,
        home=tmp_path / "home",
        quick=True,
        threads=1,
        only="quality",
        rows=tmp_path / "rows.jsonl",
    )
    first = run(options)
    lines = (tmp_path / "rows.jsonl").read_text()
    assert {row["arm"] for row in first.rows} >= {"ours, balanced", "static stuff 1"}
    assert all(row["questions"] == 1 and row["recall"] == 1.0 for row in first.rows)
    again = run(replace(options, settings=[]))
    assert again.rows == first.rows
    assert (tmp_path / "rows.jsonl").read_text() == lines
    page = run(replace(options, settings=[], only="page"))
    assert (page.rows, page.page) == (first.rows, f"rag-{first.model_name}")
    partial = tmp_path / "partial.jsonl"
    partial.write_text(lines.splitlines()[0] + "\n")
    with pytest.raises(BadInput, match="every arm answered"):
        run(replace(options, settings=[], only="page", rows=partial))
    with pytest.raises(BadInput, match="no part"):
        run(replace(options, only="speed"))
