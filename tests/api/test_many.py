"""One text is one item everywhere: each parameter that takes many takes one as a list of one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kdn
from kdn.api.cost import Costs
from kdn.api.prompts import Prompts
from kdn.api.score import Scoring
from kdn.core import as_many, text_of, texts_of
from kdn.errors import BadInput, KdnError
from kdn.model import Document, Message

TEXT = "abcabc"
Case = tuple[Callable[[kdn.Kdn, Any], Any], Any]
ROW = {"text": TEXT}
FOLDER = Path(__file__).parent
TURN = {"role": "user", "content": TEXT}

CASES: dict[str, Case] = {
    "Kdn.generate(prompt)": (lambda k, one: k.generate(one, max_tokens=2).text, Message("user", TEXT)),
    "Kdn.generate(documents)": (lambda k, one: k.generate("?", one, max_tokens=2).usage.prompt_tokens, TEXT),
    "Kdn.score(texts)": (lambda k, one: [p.probabilities for p in k.score("?", one)], TEXT),
    "Kdn.score(choices)": (lambda k, one: k.score("?", "t", choices=one), TEXT),
    "Kdn.rerank(documents)": (lambda k, one: [d.document for d in k.rerank("?", one)], TEXT),
    "Kdn.decide(questions)": (lambda k, one: len(k.decide("t", one)), TEXT),
    "Kdn.label(rows)": (lambda k, one: k.label(one, "{text}", ["x", "y"]), ROW),
    "Kdn.label(choices)": (lambda k, one: k.label([ROW], "{text}", one), TEXT),
    "Kdn.ingest(paths)": (lambda k, one: len(k.ingest(one).refused), "/nowhere/at/all"),
    "Prompts.segments(messages)": (lambda k, one: k.prompts.segments(one), Message("user", TEXT)),
    "Prompts.segments(documents)": (lambda k, one: k.prompts.segments("?", one), TEXT),
    "Prompts.request(messages)": (lambda k, one: k.prompts.request(one).prompt, TURN),
    "Prompts.request(documents)": (lambda k, one: k.prompts.request("?", one).prompt, Document(None, TEXT)),
    "Prompts.places(messages)": (
        lambda k, one: k.prompts.places(k.prompts.segments(one), one), Message("user", TEXT),
    ),
    "Prompts.places(documents)": (
        lambda k, one: k.prompts.places(k.prompts.segments("?", one), "?", one), TEXT,
    ),
    "Scoring.choices(names)": (lambda k, one: k.scoring.choices(one), TEXT),
    "Scoring.label(rows)": (lambda k, one: k.scoring.label(one, "{text}", ["x", "y"]), ROW),
    "Scoring.label(choices)": (lambda k, one: k.scoring.label([ROW], "{text}", one), TEXT),
    "Scoring.rank(documents)": (lambda k, one: k.rerank("?", one).prompt_tokens, TEXT),
    "Costs.survey(paths)": (lambda k, one: k.cost.survey(k.library, one).refused, "/nowhere/at/all"),
    "Kdn.ingest(exclude)": (lambda k, one: len(k.ingest(FOLDER, exclude=one).refused), "*.py"),
    "Costs.survey(exclude)": (lambda k, one: k.cost.survey(k.library, FOLDER, one).files, "*.py"),
}  # fmt: skip
"""For each parameter a call that uses it, and one item."""
_NO_TEXTS = {"Scoring.ask(questions)", "Scoring.ask(choices)"}
"""Parameters whose items are never texts or mappings."""


def parameters() -> list[str]:
    """Every parameter of the public classes that is said to take many."""
    many = ("Sequence[", "Iterable[", "Messages", "Documents")
    return [
        f"{owner.__name__}.{name}({parameter.name})"
        for owner in (kdn.Kdn, Prompts, Scoring, Costs)
        for name, method in inspect.getmembers(owner, inspect.isfunction)
        if not name.startswith("_")
        for parameter in inspect.signature(method).parameters.values()
        if any(word in str(parameter.annotation) for word in many)
    ]


def outcome(call: Callable[[kdn.Kdn, Any], Any], k: kdn.Kdn, given: Any) -> Any:
    try:
        return call(k, given)
    except KdnError as error:
        return type(error), str(error)


def test_every_parameter_that_takes_many_has_a_case() -> None:
    assert set(parameters()) - _NO_TEXTS == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_one_is_a_list_of_one(k: kdn.Kdn, name: str) -> None:
    call, one = CASES[name]
    if "library" in inspect.getsource(call) or "ingest" in name:
        pytest.importorskip("lancedb")
        try:
            _ = k.embedder
        except kdn.MissingExtra as missing:
            pytest.skip(str(missing))
    assert outcome(call, k, one) == outcome(call, k, [one])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("wrong", [None, 7, [7], [None]])
def test_what_is_no_item_is_refused_in_words(k: kdn.Kdn, name: str, wrong: Any) -> None:
    call, _ = CASES[name]
    if "survey" in name or "ingest" in name:
        pytest.importorskip("lancedb")
        try:
            _ = k.embedder
        except kdn.MissingExtra as missing:
            pytest.skip(str(missing))
    with pytest.raises(BadInput):
        call(k, wrong)


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda k: k.ask(None), "question is None"),
        (lambda k: k.score(None, "a"), "query is None"),
        (lambda k: k.rerank(3, "a"), "query is 3; it must be a text"),
        (lambda k: k.decide(b"a", "b"), "text is a bytes"),
        (lambda k: k.prefill(None), "text is None"),
        (lambda k: k.lookup([]), "text is a list"),
        (lambda k: k.generate([]), "without messages"),
        (lambda k: k.generate([{"role": "user"}]), "a role and a content"),
        (lambda k: k.generate("?", [{"words": "x"}]), "a document is a text"),
    ],
)
def test_a_wrong_single_value_is_named(
    k: kdn.Kdn, call: Callable[[kdn.Kdn], Any], what: str
) -> None:
    with pytest.raises(BadInput, match=what):
        call(k)


def test_documents_may_be_mappings(k: kdn.Kdn) -> None:
    plain = k.prompts.segments("?", [Document("a.txt", TEXT)])
    assert k.prompts.segments("?", [{"id": "a.txt", "text": TEXT}]) == plain
    assert k.prompts.segments("?", {"title": "a.txt", "text": TEXT}) == plain


def test_the_helpers() -> None:
    assert as_many("abc", "texts") == ("abc",)
    assert as_many(Path("a"), "paths") == (Path("a"),)
    assert as_many(["a", "b"], "texts") == ("a", "b")
    assert as_many((n for n in (1, 2)), "numbers") == (1, 2)
    assert texts_of([], "texts") == ()
    assert text_of("a", "text") == "a"
    with pytest.raises(BadInput, match="texts: item 1 is None; it must be a text"):
        texts_of(["a", None], "texts")
