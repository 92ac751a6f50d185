"""The look: which sentence the question attends to, and how clear that is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kdn.core import LayerView, Plan
from kdn.model import LoadedModel
from kdn.reuse.steer import SentenceProbe
from tests.engine.runs import load_tiny, run, some_tokens


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path], model_cache: Path) -> LoadedModel:
    return load_tiny(tiny_model("llama", num_hidden_layers=4), model_cache)


def test_the_look_is_the_questions_attention_by_token(tiny: LoadedModel) -> None:
    """Written out: of four layers, layer 2 alone (every other one of the upper half)."""
    sentences = (range(5, 15), range(15, 40))
    look = SentenceProbe(sentences, question_from=50, num_layers=4)
    by_token: list[float] = []

    def by_hand(view: LayerView) -> None:
        if view.layer == 2:
            seen = view.attend(torch.arange(50, 60), torch.arange(40))
            by_token.extend(float(seen[one.start : one.stop].mean()) for one in sentences)

    run(tiny, Plan(some_tokens(60, 200), observers=(look, by_hand)))
    assert (look.asked[2] / torch.tensor([10, 25])).tolist() == pytest.approx(by_token)
    seen = look.found()
    assert seen is not None
    assert seen.number == by_token.index(max(by_token))
    assert seen.lead == pytest.approx(1 - min(by_token) / max(by_token))
    total = [10 * by_token[0], 25 * by_token[1]]
    assert seen.share == pytest.approx(total[seen.number] / sum(total))


def test_how_clear_a_look_is_by_hand() -> None:
    """A token of the second sentence gets 2 in one layer and 4 in the other, of the first 3 and 0."""
    look = SentenceProbe((range(2), range(2, 3), range(3, 5)), question_from=9, num_layers=4)
    look.asked = {2: torch.tensor([6.0, 2.0, 2.0]), 3: torch.tensor([0.0, 4.0, 2.0])}
    seen = look.found()
    assert seen is not None
    assert (seen.number, seen.sentence) == (1, range(2, 3))
    assert seen.lead == 0.5, "6 to a token of the second, 3 to one of the first"
    assert seen.share == 6 / 16
    assert seen.votes == 0.5, "one layer of two"


def test_a_sentence_without_a_rival_leads_by_all() -> None:
    look = SentenceProbe((range(2),), question_from=9, num_layers=4)
    look.asked = {2: torch.tensor([1.0])}
    seen = look.found()
    assert seen is not None
    assert (seen.lead, seen.share, seen.votes) == (1, 1, 1)


def test_a_look_that_saw_nothing_finds_nothing() -> None:
    assert SentenceProbe((range(3),), question_from=5, num_layers=4).found() is None
