"""Constraints as masks: which tokens may come next, and which constraints are refused, in words."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from kdn.core import Constraint
from kdn.errors import BadInput
from kdn.model import Grammars, LoadedModel, load_model

pytest.importorskip("llguidance")


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path], model_cache: Path) -> LoadedModel:
    """Its tokens are the 256 bytes, and two special ones."""
    return load_model(tiny_model(), cache_dir=model_cache, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def grammars(tiny: LoadedModel) -> Grammars:
    return tiny.grammars


def said_after(tiny: LoadedModel, constraint: Constraint, text: str) -> set[str]:
    """What may follow `text`: bytes as they read, and `<|end|>`."""
    matcher = tiny.grammars.compile(constraint).matcher()
    for token_id in tiny.tokenizer.encode(text):
        assert token_id in matcher.allowed().tolist()
        matcher.take(token_id)
    return {tiny.tokenizer.token_text(token_id) for token_id in matcher.allowed().tolist()}


def test_each_kind_allows_what_it_says(tiny: LoadedModel) -> None:
    assert said_after(tiny, Constraint.regex("ab*"), "a") == {"b", "<|end|>"}
    assert said_after(tiny, Constraint.choice(["yes", "yet", "no"]), "ye") == {"s", "t"}
    assert said_after(tiny, Constraint.grammar('start: "x" start | "y"'), "x") == {"x", "y"}
    assert said_after(tiny, Constraint.grammar('root ::= "x" root | "y"'), "xx") == {"x", "y"}
    assert said_after(tiny, Constraint.json_schema({"const": 7}), "7") == {"<|end|>"}
    assert "{" in said_after(tiny, Constraint.json_object(), "")
    assert "[" not in said_after(tiny, Constraint.json_object(), "")


def test_an_answer_is_complete_when_nothing_can_follow(
    grammars: Grammars, tiny: LoadedModel
) -> None:
    matcher = grammars.compile(Constraint.choice(["no", "not"])).matcher()
    done = []
    for token_id in tiny.tokenizer.encode("not"):
        matcher.take(token_id)
        done.append(matcher.is_complete)
    assert done == [False, False, True]


def test_white_space_between_marks_is_bounded(tiny: LoadedModel) -> None:
    schema = Constraint.json_schema({"type": "object", "properties": {"a": {"type": "null"}}})
    assert " " in said_after(tiny, schema, "{" + " " * 15)
    assert " " not in said_after(tiny, schema, "{" + " " * 16)


def test_the_same_constraint_is_compiled_once_and_answers_do_not_meet(grammars: Grammars) -> None:
    first = grammars.compile(Constraint.regex("a{3}"))
    assert grammars.compile(Constraint.regex("a{3}")) is first
    one, other = first.matcher(), first.matcher()
    (token_id,) = one.allowed().tolist()
    for _ in range(3):
        one.take(token_id)
    assert one.is_complete
    assert not other.is_complete


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"not": {"type": "string"}}, "uses not, which is not supported"),
        ({"if": True, "then": False}, "uses if, then, which are not supported"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "strin"}, "Invalid type: strin"),
        ({"type": "string", "format": "frobnicate"}, "Unknown format: frobnicate"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"$ref": "https://example.org/a.json"}, "https://example.org/a.json"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "no text fulfils it|NoExt"),
        ({"type": "integer", "minimum": 5, "maximum": 1}, "minimum .5. is greater than maximum"),
        (
            {"type": "object", "properties": {"a": False}, "required": ["a"]},
            "property .a. is unsat",
        ),
    ],
)
def test_a_schema_that_cannot_be_honoured_is_refused_by_its_keyword(
    grammars: Grammars, schema: dict[str, object], said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        grammars.compile(Constraint.json_schema(schema))


@pytest.mark.parametrize(
    ("constraint", "said"),
    [
        (Constraint.regex("(a"), "unclosed group"),
        (Constraint.regex(r"(a)\1"), "backreferences are not supported"),
        (Constraint.grammar("start: foo"), "foo"),
        (Constraint.grammar("a b c"), "grammar"),
    ],
)
def test_what_is_no_expression_or_grammar_is_refused(
    grammars: Grammars, constraint: Constraint, said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        grammars.compile(constraint)


HOSTILE = {
    "nested counts": lambda: Constraint.regex("((a{1,1000}){1,1000}){1,1000}"),
    "states": lambda: Constraint.json_schema({"type": "string", "pattern": "^(.*a.{30})$"}),
    "long": lambda: Constraint.json_schema({"type": "string", "minLength": 10**9}),
    "deep": lambda: Constraint.json_schema('{"items":' * 400 + "{}" + "}" * 400),
    "wide": lambda: Constraint.json_schema({"properties": {f"p{i}": {} for i in range(1500)}}),
    "many choices": lambda: Constraint.choice([f"choice {i}" for i in range(4000)]),
    "ambiguous": lambda: Constraint.grammar("start: " + " ".join(['("a"|"b")?'] * 3000)),
    "doubling": lambda: Constraint.json_schema(
        {
            "$ref": "#/$defs/d0",
            "$defs": {
                f"d{i}": {"properties": {k: {"$ref": f"#/$defs/d{i + 1}"} for k in "lr"}}
                for i in range(40)
            }
            | {"d40": {"type": "null"}},
        }
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_constraint_ends_soon_and_its_masks_are_cheap(
    grammars: Grammars, name: str
) -> None:
    """Whether it is taken or refused, neither compiling nor a mask lasts."""
    began = time.monotonic()
    with suppress(BadInput):
        matcher = grammars.compile(HOSTILE[name]()).matcher()
        for _ in range(40):
            tokens = matcher.allowed().tolist()
            matcher.take(tokens[0])
            if matcher.is_complete:
                break
    assert time.monotonic() - began < 20


def test_a_constraint_that_is_not_compiled_in_time_is_refused(tiny: LoadedModel) -> None:
    hasty = Grammars(tiny.tokenizer, tiny.decoder.config.vocab_size, deadline_s=1e-6)
    with pytest.raises(BadInput, match="not compiled within 1e-06 s; simplify it"):
        hasty.compile(HOSTILE["wide"]())


@pytest.mark.alone
def test_other_threads_run_while_one_compiles(grammars: Grammars) -> None:
    """A wide schema takes a good part of a second; a thread that counts goes on counting.

    On a machine that is busy all lasts longer, and a pause of the counter may last with it.
    """
    wide = json.dumps({"properties": {f"q{i}": {"type": "string"} for i in range(1800)}})
    done = threading.Event()

    def compiled() -> None:
        with suppress(BadInput):  # a machine that is busy may refuse it
            grammars.compile(Constraint.json_schema(wide))
        done.set()

    worker = threading.Thread(target=compiled)
    worker.start()
    longest_s, began = 0.0, time.monotonic()
    last = began
    while not done.is_set():
        now = time.monotonic()
        longest_s, last = max(longest_s, now - last), now
    worker.join()
    assert longest_s < max(0.5, 0.5 * (last - began))
