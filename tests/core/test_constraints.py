"""What a constraint takes, and what it refuses before anything is compiled."""

from __future__ import annotations

from typing import Any

import pytest

from kdn import Constraint, Sampling
from kdn.core import ConstraintKind
from kdn.errors import BadInput


def test_equal_constraints_are_equal_however_they_are_written() -> None:
    assert Constraint.json_schema('{"type":  "null"}') == Constraint.json_schema({"type": "null"})
    assert Constraint.choice(["yes", "no"]).text == '["yes", "no"]'
    assert Constraint.json_object().kind is ConstraintKind.JSON_OBJECT


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Constraint.json_schema("{"), "no JSON"),
        (lambda: Constraint.json_schema("[1]"), "is an object"),
        (lambda: Constraint.json_schema({"enum": {1}}), "no JSON"),
        (lambda: Constraint.choice("yes"), "in a list"),
        (lambda: Constraint.choice([]), "in a list"),
        (lambda: Constraint.choice(["a", ""]), "is empty"),
        (lambda: Constraint.regex(""), "is empty"),
        (lambda: Constraint.regex(3), "as a text"),  # type: ignore[arg-type]
        (lambda: Constraint.grammar("a" * 70_000), "70000 bytes; at most 65536"),
        (lambda: Sampling(constraint="x"), "kdn.Constraint"),  # type: ignore[arg-type]
        (lambda: Sampling(constraint=Constraint.regex("a"), ignore_eos=True), "ignore_eos"),
        (lambda: Sampling(constraint=Constraint.regex("a"), allowed=(1,), max_tokens=1), "allowed"),
    ],
)
def test_what_says_nothing_is_refused_in_words(make: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        make()
