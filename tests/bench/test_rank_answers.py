"""Answers with and without reranking, by hand: who is compared with whom, and what is asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from kdn.bench.rank.answers import Answered, answer_rows, answer_summary, asked
from kdn.bench.rank.pairs import held_out


def answers(f1: Sequence[float], delay_s: Sequence[float]) -> list[Answered]:
    return [Answered(f, d) for f, d in zip(f1, delay_s, strict=True)]


def test_reranking_is_compared_with_the_best_that_takes_no_longer() -> None:
    """One reranked passage takes 2.0 s: so do three retrieved (2.1 s is within 10 %), not six."""
    found = {
        f"squad/{n}": answers((0.2, 0.4, 0.9, 0.5, 0.3), (1.0, 2.1, 4.0, 2.0, 5.0))
        for n in range(3)
    }
    rows = {row["arm"]: row for row in answer_rows(found)}
    one, three = rows["reranked, 1 in the prompt"], rows["reranked, 3 in the prompt"]
    assert one["in the same time"] == "retrieved, 3 in the prompt"
    assert one["F1 gain"] == pytest.approx(0.1)
    assert three["in the same time"] == "retrieved, 6 in the prompt"
    assert three["F1 gain"] == pytest.approx(-0.6)
    summary = answer_summary(list(rows.values()))
    assert summary["f1_reranked"] == pytest.approx(0.5)
    assert summary["f1_gain"] == pytest.approx(0.1)


def test_nothing_is_as_fast_as_reranking_that_costs_less_than_any_prompt() -> None:
    found = {"squad/0": answers((1, 1, 1, 1, 1), (3.0, 3.0, 3.0, 1.0, 3.5))}
    rows = {row["arm"]: row for row in answer_rows(found)}
    assert rows["reranked, 1 in the prompt"]["in the same time"] == "nothing is as fast"
    assert "F1 gain" in rows["reranked, 3 in the prompt"]
    assert answer_summary([]) == {"f1_reranked": None, "f1_gain": None}


def test_only_held_out_questions_are_asked_of_the_whole_library(tmp_path: Path) -> None:
    """Passages are ordered by likeness: here a text is like a query that begins with its letter."""
    articles = [
        {
            "title": f"article {n}",
            "paragraphs": [
                {
                    "context": f"{letter}{n}",
                    "qas": [{"question": f"{letter}?", "answers": [{"text": "yes"}]}],
                }
                for letter in "abcde"
            ],
        }
        for n in range(12)
    ]
    hops = [
        {
            "id": str(n),
            "question": "z?",
            "answer": "no",
            "context": {"title": [f"z{n}"], "sentences": [["one. ", "two."]]},
        }
        for n in range(80)
    ]
    for name, records in (("squad", articles), ("hotpotqa", hops)):
        (tmp_path / name).mkdir()
        lines = "\n".join(map(json.dumps, records))
        (tmp_path / name / "public.jsonl").write_text(lines, "utf-8")

    def embed(texts: Sequence[str]) -> np.ndarray:
        return np.eye(26)[[ord(text[0]) - ord("a") for text in texts]]

    questions = asked(tmp_path, embed, quick=False)
    squad = [q for q in questions if q.name.startswith("squad")]
    kept = sum(held_out(f"article {n}") for n in range(12))
    assert 0 < kept < 12
    assert 25 <= len(squad) <= 5 * kept
    assert len(squad[0].passages) == 20
    assert squad[0].answers == ("yes",)
    assert {p[0] for p in squad[0].passages[:12]} == {squad[0].text[0]}
    hop = next(q for q in questions if q.name.startswith("hotpotqa"))
    assert hop.passages[0].endswith("\none. two.")
