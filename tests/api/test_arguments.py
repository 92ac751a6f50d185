"""Arguments of the wrong kind end in one kdn error, for every parameter of every verb."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kdn
from kdn.api.answering import Answering
from kdn.api.checked import checked
from kdn.clock import ManualClock
from kdn.core import Request, Sampling
from kdn.errors import BadInput, KdnError

RIGHT: dict[str, dict[str, Any]] = {
    "generate": {"prompt": "?", "max_tokens": 1},
    "ask": {"question": "?", "max_tokens": 1},
    "submit": {},
    "score": {"query": "?", "texts": ["a"]},
    "rerank": {"query": "?", "documents": ["a"]},
    "decide": {"text": "a", "questions": ["b"]},
    "label": {"rows": [{"text": "a"}], "template": "{text}", "choices": ["x", "y"]},
    "ingest": {"paths": "/nowhere/at/all"},
    "prefill": {"text": "a"},
    "lookup": {"text": "a"},
}
"""A call of each verb that is right."""
WRONG: list[Any] = [
    None, 7, -1, 0, True, 1.5, math.nan, math.inf, 10**400, "", "x", "\ud800", b"x", [], [[]], [["a"]], [7],
    {}, {"a": 1}, object(), len, ["\udfff"], [{}],
]  # fmt: skip
_NO_VERBS = {"catch_up", "check", "close"}
"""They take nothing."""


def verbs() -> list[str]:
    found = inspect.getmembers(kdn.Kdn, inspect.isfunction)
    return [name for name, _ in found if not name.startswith("_") and name not in _NO_VERBS]


def parameters() -> list[tuple[str, str]]:
    return [
        (verb, name)
        for verb in verbs()
        for name in list(inspect.signature(getattr(kdn.Kdn, verb)).parameters)[1:]
    ]


def refusal(verb: Callable[..., Any], named: dict[str, Any]) -> str:
    """What a kdn error says; empty where the call is taken. Any other error is the test's failure."""
    try:
        verb(**named)
    except KdnError as error:
        return str(error)
    return ""


def test_each_verb_has_a_right_call() -> None:
    assert set(verbs()) == set(RIGHT)


@pytest.mark.parametrize(("verb", "name"), parameters())
def test_wrong_kinds_end_in_one_sentence(k: kdn.Kdn, verb: str, name: str) -> None:
    if verb in ("ask", "ingest"):
        pytest.importorskip("lancedb")
    refused = 0
    for wrong in WRONG:
        said = refusal(getattr(k, verb), RIGHT[verb] | {name: wrong})
        assert "\n" not in said
        assert len(said) < 600
        refused += said != ""
    assert refused > 3, f"{verb} takes nearly anything for {name}"
    assert k.engine.is_running


@pytest.mark.parametrize(
    ("verb", "named", "why"),
    [
        ("score", {"query": ["a"]}, "query is a list; it must be a text"),
        ("score", {"temperature": "hot"}, "temperature is 'hot'; it must be a number"),
        ("score", {"texts": [["a"]]}, "texts: item 0 is a list; it must be a text"),
        ("rerank", {"top_n": "3"}, "top_n is '3'; it must be a whole number or None"),
        ("rerank", {"truncate": "no"}, "truncate is 'no'; it must be True or False"),
        ("rerank", {"documents": None}, "documents are None; give a list of them"),
        ("decide", {"questions": 7}, "questions are a int; give a list of them"),
        ("decide", {"text": 10**400}, "text is a number of more than 128 bits; it must be a text"),
        ("generate", {"reuse": "all"}, "reuse is 'all'; it must be 'exact' or 'blend'"),
        ("generate", {"stream": "out"}, "stream is 'out'; it must be a function or None"),
        ("generate", {"sampling": {}}, "sampling is a dict; it must be a kdn.Sampling or None"),
        ("generate", {"prompt": "a\ud800"}, r"prompt holds half a character \(U\+D800\) at 1"),
        ("submit", {"request": "?"}, "request is '.'; it must be a kdn.Request"),
        ("ingest", {"paths": ""}, "item 0 is ''; it must name a file or a folder"),
        ("prefill", {"name": 3}, "name is 3; it must be a text or None"),
    ],
)
def test_what_is_said(k: kdn.Kdn, verb: str, named: dict[str, Any], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        getattr(k, verb)(**RIGHT[verb] | named)

    async def awaited() -> Any:
        return await getattr(kdn.AsyncKdn(k), verb)(**RIGHT[verb] | named)

    if hasattr(kdn.AsyncKdn, verb):
        with pytest.raises(BadInput, match=why):
            asyncio.run(awaited())


def test_questions_about_documents_are_checked_too(k: kdn.Kdn) -> None:
    assert isinstance(k.answering, Answering)
    for wrong in (None, 7, ["a"], b"a"):
        with pytest.raises(BadInput, match=r"question is .*; it must be a text"):
            k.answering.answer(wrong)  # type: ignore[arg-type]


def test_what_python_itself_says_of_a_call_stays(k: kdn.Kdn) -> None:
    with pytest.raises(TypeError, match="missing 2 required positional arguments"):
        k.score()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'tokens'"):
        k.generate("?", tokens=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ({"adapters": ["a"]}, "adapters is a list; it must map names to folders"),
        ({"adapters": {"a": 3}}, "adapters: 'a' stands for 3, which is no folder"),
        ({"device": 3}, "device is 3; it must be a text or None"),
        ({"dtype": []}, "dtype is a list; it must be a text or None"),
        ({"quantization": None}, "quantization is None; it must be a text"),
        ({"int8": "yes"}, "int8 is 'yes'; it must be True or False"),
        ({"home": "x" * 5_000}, "^x{200} cannot be read: File name too long; choose another"),
        ({"home": 3}, "home is 3; it must be"),
        ({"config": {}}, "config is a dict; it must be a kdn.Config or None"),
        ({"home": ""}, "home is ''; it must name a folder"),
        ({"home": "a\0b"}, "'a.x00b' holds a NUL character"),
        ({"home": "~no-such-user/x"}, "'~no-such-user/x': no such user here"),
        ({"adapters": {"a": "~no-such-user"}}, "no such user here"),
        ({"clock": 3}, r"clock is 3; it must be an object with now\(\) and wall\(\) or None"),
        ({"clock": ManualClock}, r"clock is a type; it must be an object with now\(\)"),
        ({"trace": "no"}, r"trace is 'no'; it must be an object with event\(\) or None"),
    ],
)
def test_an_opening_is_checked_too(named: dict[str, Any], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        kdn.open("no-such-model", **named)


@pytest.mark.parametrize(
    ("opening", "right"),
    [(kdn.open, {"model": "no-such-model"}), (kdn.open_models, {"models": ["no-such-model"]})],
)
def test_no_argument_of_an_opening_ends_in_another_error(
    tmp_path: Path, opening: Callable[..., Any], right: dict[str, Any]
) -> None:
    """What is right but for the model ends in UnknownModel, which is a kdn error too."""
    for name in inspect.signature(opening).parameters:
        base = right if name == "config" else right | {"home": tmp_path}
        own = [{"m": 7}, {"": "x"}, {1: "x"}, {"m": {"a": 3}}, Path("\0"), "~no-such-user", int]
        wrongs = [one for one in WRONG + own if (name, one) != ("home", "x")]
        for wrong in wrongs:
            assert refusal(opening, base | {name: wrong})


class Counter:
    @checked
    def count(self, to: int, by: float = 1, name: str | None = None) -> str:
        return f"{to} {by} {name}"


def test_whole_numbers_are_numbers_and_truth_is_none() -> None:
    assert Counter().count(2, 3, name="a") == "2 3 a"
    for wrong in ({"to": True}, {"to": 1.0}, {"to": 1, "by": False}, {"to": 1, "name": 2}):
        with pytest.raises(BadInput):
            Counter().count(**wrong)


def test_a_right_request_passes(k: kdn.Kdn) -> None:
    asked = k.prompts.request("?", sampling=Sampling(max_tokens=1))
    assert isinstance(asked, Request)
    assert len(list(k.submit(asked))) == 2
