"""The paper's table on a tiny model: every way is there, and the marks are given as one would by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kdn.bench import Result
from kdn.bench.knowledge.facts import document, invent, judge


def test_facts_are_about_different_places_and_say_their_answers() -> None:
    facts = invent(30, seed=1)
    assert len({fact.asked for fact in facts}) == 30
    assert all(fact.answer in fact.sentence for fact in facts)
    assert all(fact.question != fact.asked for fact in facts)
    assert all(fact.sentence in document(facts) for fact in facts)
    assert invent(30, seed=1) == facts != invent(30, seed=2)


def test_answers_are_judged_by_their_words() -> None:
    assert judge("Ada Fenn", "Ada Fenn") == (1, 1)
    assert judge("It is Ada Fenn.", "Ada Fenn") == (1, 2 * 2 / (4 + 2))
    assert judge("Fenn", "Ada Fenn") == (0, 2 / 3)
    assert judge("1864", "64") == (0, 0)
    assert judge("", "64") == (0, 0)
    assert judge("\nno\n64", "64") == (0, 0), "the first line counts"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*")  # peft asks it the old way
def test_every_way_has_its_row(benched: Callable[[str], Result]) -> None:
    pytest.importorskip("peft")
    result = benched("kdn")
    ways = {str(row["way"]): row for row in result.rows}
    assert set(ways) == {"nothing added", "fine-tuning", "in the prompt", "stored KV"}
    assert ways["in the prompt"]["F1"] == ways["stored KV"]["F1"], "reuse is exact"
    assert (result.summary["add_speedup"] or 0) > 0
    assert None not in result.summary.values()
