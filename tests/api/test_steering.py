"""Steering through the Python API, with a tiny model: what is marked, and what the answer says of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import kdn
from kdn.api.steer_fit import FitQuestion, FitStep, fit_recipe
from kdn.api.steered import prefill_steered, show_steered
from kdn.core import Retention
from kdn.errors import BadInput, PromptTooLong
from kdn.reuse.steer import MarkedSpan, SteerRecipe

DOCUMENTS = [
    {"id": "door", "text": "The lock of the red door opens with the brass key. It hangs up high."},
    {
        "id": "boat",
        "text": "The boat leaves at nine. A ticket costs four crowns, and dogs ride free.",
    },
]
ASKED = "Where is the key?"


@pytest.fixture
def k(tiny_model: Callable[..., Path], tmp_path: Path) -> Iterator[kdn.Kdn]:
    with kdn.open(tiny_model(), home=tmp_path, dtype="float32") as made:
        yield made
        made.check()


def say(k: kdn.Kdn, **options: object) -> kdn.api.Answer:
    return k.generate(
        ASKED,
        DOCUMENTS,
        max_tokens=6,
        retention=Retention.NOTHING,
        **options,  # type: ignore[arg-type]
    )


def test_what_steering_did_is_reported_beside_the_plain_answer(k: kdn.Kdn) -> None:
    plain = say(k)
    assert plain.steering is None
    spans = [{"text": "brass key", "weight": 10}, {"text": "crowns", "weight": 0}]
    steered = say(k, steer=spans, steer_report=True)
    assert steered.steering is not None
    assert steered.steering.plain_text == plain.text
    assert steered.steering.kl > 0
    assert steered.steering.num_columns >= 3
    idle = say(k, steer=[{"text": "brass key", "weight": 1}], steer_report=True)
    assert idle.steering is not None
    assert idle.text == plain.text
    assert idle.steering.kl == pytest.approx(0, abs=1e-9)


def test_a_text_beyond_the_context_is_refused_before_it_is_computed(k: kdn.Kdn) -> None:
    """The tiny model's context is 512 tokens, and each letter is one."""
    recipe = SteerRecipe(k.model.fingerprints.of(None))
    for steered in (show_steered, prefill_steered):
        with pytest.raises(PromptTooLong, match=r"the text holds .* and the model's context 512"):
            steered(k, "x" * 600, recipe)


@pytest.mark.parametrize(("document", "answer"), [("", "red"), ("The door is red.", " ")])
def test_a_recipe_is_not_fitted_on_a_question_without_text(
    k: kdn.Kdn, document: str, answer: str
) -> None:
    asked = [FitQuestion("The door is red.", "Which?", "red"), FitQuestion(document, "?", answer)]
    with pytest.raises(BadInput, match="question 2 has an empty document or answer"):
        fit_recipe(k, asked, SteerRecipe(k.model.fingerprints.of(None)), lambda _: None)


def test_a_recipe_is_not_fitted_beyond_the_context(k: kdn.Kdn) -> None:
    """The document alone fits into 512 tokens, with its question it does not."""
    asked = [
        FitQuestion("The door is red.", "Which?", "red"),
        FitQuestion("x" * 300, "y" * 300, "r"),
    ]
    steps: list[FitStep] = []
    with pytest.raises(PromptTooLong, match=r"question 2, .* and the model's context 512"):
        fit_recipe(k, asked, SteerRecipe(k.model.fingerprints.of(None)), steps.append)
    long_prompts = SteerRecipe(k.model.fingerprints.of(None), prompts=("p", "p" * 500))
    with pytest.raises(PromptTooLong, match="question 1's document and the recipe's prompt hold"):
        fit_recipe(k, asked[:1], long_prompts, steps.append)
    assert not steps


def test_spans_may_be_objects_and_stand_in_a_message(k: kdn.Kdn) -> None:
    span = MarkedSpan(5, document="door", start=4, stop=8)
    assert say(k, steer=span, steer_report=True).steering is not None
    with_message = say(k, steer=[{"text": "the key", "weight": 5}], steer_report=True).steering
    assert with_message is not None
    assert with_message.kl > 0


def test_a_look_is_an_option_of_requests_with_documents(k: kdn.Kdn) -> None:
    for reuse in ("exact", "blend"):
        looked = say(k, steer="look-always", reuse=reuse, steer_report=True).steering
        assert looked is not None
        assert looked.kl > 0
    with pytest.raises(kdn.BadInput, match="needs documents"):
        k.generate(ASKED, steer="look", max_tokens=2)


def test_a_span_that_is_not_there_is_refused_before_anything_runs(k: kdn.Kdn) -> None:
    with pytest.raises(kdn.BadInput, match="'silver' is not in any document or message"):
        say(k, steer=[{"text": "silver", "weight": 3}])
    with pytest.raises(kdn.BadInput, match="steer can be 'look'"):
        say(k, steer="retrieved")


def test_a_text_that_a_recipe_has_steered_is_used_where_the_recipe_is_asked_for(k: kdn.Kdn) -> None:
    recipe = SteerRecipe(k.model.fingerprints.of(None), weight=5, share=0.4, combine="union")
    document = DOCUMENTS[0]
    num_tokens = prefill_steered(k, document["text"], recipe, document["id"])
    steered = k.generate(ASKED, [document], steer=recipe, max_tokens=3)
    assert steered.usage.lossy >= num_tokens
    plain = k.generate(ASKED, [document], max_tokens=3)
    assert (plain.usage.exact, plain.usage.lossy) == (0, 0)
    shown = show_steered(k, document["text"], recipe)
    assert "".join(piece for piece, _ in shown.pieces).strip() == document["text"]
    assert 0 < shown.num_columns < len(shown.pieces)
    with pytest.raises(kdn.BadInput, match="made for the model"):
        k.generate(ASKED, [document], steer=replace(recipe, model="another"), max_tokens=3)
    with pytest.raises(kdn.BadInput, match="is empty"):
        prefill_steered(k, " ", recipe)
