"""What cannot be steered is refused in one sentence at each door: Python, HTTP, the command line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import kdn
from kdn.api.steered import prefill_steered
from kdn.reuse.steer import RecipeFolder, SteerRecipe
from kdn.serve import served
from tests.cli.program import kdn as command
from tests.serve.running import Running, running

TEXT = "The lock of the red door opens with the brass key. It hangs up high."
DOCUMENTS = [{"id": "door", "text": TEXT}]


def at(document: object, start: object, stop: object) -> dict[str, object]:
    return {"document": document, "start": start, "stop": stop, "weight": 3}


def loud(weight: object) -> list[dict[str, object]]:
    return [{"text": "brass key", "weight": weight}]


SPANS: tuple[tuple[object, str, str], ...] = (
    # steer; what Python says; what HTTP says where its shape is wrong
    ([{"text": "silver", "weight": 3}], "'silver' is not in any document or message", ""),
    ([{"text": "brass\nkey", "weight": 3}], "is not in any document or message", ""),
    ([{"text": " ", "weight": 3}], "give words of a document or message", ""),
    ([{"text": 5, "weight": 3}], "a span's text is 5", "give a text"),
    ([*loud(3), {"text": "brass", "weight": 2}], "overlap; mark each character once", ""),
    ([*loud(3), *loud(3)], "overlap; mark each character once", ""),
    ([at("door", 4, 8), at(0, 7, 9)], "overlap; mark each character once", ""),
    ([at("door", 4, 4)], "is empty; start must be below stop", ""),
    ([at("door", -1, 4)], "is empty; start must be below stop", ""),
    ([at("door", 4, 4000)], "ends behind the document's 68 characters", ""),
    ([at("door", 10**30, 10**31)], "ends behind the document's 68 characters", ""),
    ([at("door", "1", 4)], "give a number of characters", "give a whole number"),
    ([at("door", True, 4)], "give a number of characters", "give a whole number"),
    ([at("door", 3, 4)], "holds white space alone; mark words", ""),
    ([at(True, 1, 4)], "give its number, from 0, or its id", "give a whole number"),
    ([at(0.0, 1, 4)], "give its number, from 0, or its id", "give a whole number"),
    ([at(9, 1, 4)], "names a document that is not here; there are 'door'", ""),
    ([{"document": "door", "start": 1, "weight": 3}], "a span needs a text, or a document", ""),
    ([{"text": "brass", "start": 1, "stop": 2, "weight": 3}], "its text or its offsets", ""),
    ([{"text": "brass", "weight": 3, "tone": 1}], "a span is a mapping of", "unknown here"),
    (loud(-1), "give a number from 0 to 1000", ""),
    (loud(1e9), "give a number from 0 to 1000", ""),
    (loud(math.nan), "give a number from 0 to 1000", "finite number"),
    (loud(math.inf), "give a number from 0 to 1000", "finite number"),
    (loud(10**400), "give a number from 0 to 1000", "give a number"),
    (loud("3"), "give a number from 0 to 1000", "give a number"),
    (loud(True), "give a number from 0 to 1000", "give a number"),
    (loud(None), "give a number from 0 to 1000", "give a number"),
    ([{"text": "brass"}], "has no weight; give one", "it is missing"),
    (["brass"], "a span is a mapping of", "give an object"),
    (3.5, "give a list of them", "give a list"),
    (0, "give a list of them", "give a list"),
    (False, "give a list of them", "give a list"),
    ({}, "has no weight; give one", "give a list"),
    ("", "no steering recipe is named ''", ""),
    ("quiet", "no steering recipe is named 'quiet'; there are foreign, vast", ""),
    ("../foreign", "no steering recipe is named '../foreign'", ""),
    ("foreign", "was made for the model 'an\\x1bother' and this one is", ""),
)
RECIPES: tuple[tuple[dict[str, object], str], ...] = (
    ({"model": "another"}, "was made for the model another"),
    ({"weight": math.nan}, "weight is nan; give a number above 0, at most 1000"),
    ({"weight": 1e9}, "weight is 1000000000.0; give a number above 0"),
    ({"weight": "3"}, "weight is '3'"),
    ({"weight": True}, "weight is True"),
    ({"share": 2}, "share is 2; give a share from 0 to 1"),
    ({"sinks": 1.5}, "sinks is 1.5; give a whole number"),
    ({"layers": (99,)}, "names layers up to 99 and the model has 2"),
    ({"layers": (-1,)}, "layers are (-1,); give some numbers from 0 on"),
    ({"layers": 5}, "layers are 5"),
    ({"heads": (99,)}, "names heads up to 99 and the model has 4"),
    ({"heads": ()}, "heads are (); give some numbers"),
    ({"heads": (1, 1)}, "heads are (1, 1)"),
    ({"combine": "xor"}, "combine is 'xor'; it can be intersection, union, first"),
    ({"literal": "yes"}, "literal is 'yes'; it is true or false"),
    ({"prompts": ("a",)}, "prompts are ('a',); give two texts"),
    ({"prompts": ("a", " ")}, "give two texts"),
)


def is_one_sentence(said: str) -> bool:
    return len(said) < 400 and said.isprintable() and "Error" not in said


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", max_position_embeddings=2048)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def k(model: Path, home: Path) -> Iterator[kdn.Kdn]:
    with kdn.open(model, home=home) as made:
        kept = RecipeFolder(home)
        kept.folder.mkdir()
        own = SteerRecipe(made.model.fingerprints.of(None))
        kept.file("foreign").write_bytes(replace(own, model="an\x1bother").encode())
        kept.file("vast").write_bytes(replace(own, layers=(99,)).encode())
        yield made
        made.check()


@pytest.fixture(scope="module")
def server(k: kdn.Kdn) -> Iterator[Running]:
    with running(served(k)) as made:
        yield made


@pytest.mark.parametrize(("steer", "says", "of_shape"), SPANS)
def test_spans_in_python_and_over_http(
    k: kdn.Kdn, server: Running, steer: Any, says: str, of_shape: str
) -> None:
    with pytest.raises(kdn.BadInput) as raised:
        k.generate("Which?", DOCUMENTS, steer=steer, max_tokens=1)
    assert says in str(raised.value)
    assert is_one_sentence(str(raised.value))
    body = {
        "messages": [{"role": "user", "content": "Which?"}],
        "documents": DOCUMENTS,
        "kdn": {"steer": steer},
    }
    content = json.dumps(body)
    answer = server.http.post(
        "/v1/chat/completions", content=content, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400
    error = answer.json()["error"]
    if "NaN" in content or "Infinity" in content:  # no JSON: refused before it has fields
        assert error["param"] is None
    else:
        assert error["param"].startswith("kdn.steer")
    assert (of_shape or says) in error["message"]
    assert is_one_sentence(error["message"])


@pytest.mark.parametrize("nothing", [None, (), []])
def test_a_report_of_no_steering(k: kdn.Kdn, server: Running, nothing: Any) -> None:
    assert k.generate("Which?", DOCUMENTS, steer=nothing, max_tokens=1).steering is None
    with pytest.raises(kdn.BadInput, match="give steer too"):
        k.generate("Which?", DOCUMENTS, steer=nothing, steer_report=True, max_tokens=1)
    with pytest.raises(kdn.BadInput, match="give steer too"):
        k.ask("Which?", steer=nothing, steer_report=True)
    options: dict[str, Any] = {"steer": None if nothing is None else [], "steer_report": True}
    messages = [{"role": "user", "content": "Which?"}]
    answer = server.http.post("/v1/chat/completions", json={"messages": messages, "kdn": options})
    assert answer.status_code == 400
    assert "give steer too" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("settings", "says"), RECIPES)
def test_recipes_in_python_and_as_files(k: kdn.Kdn, settings: dict[str, Any], says: str) -> None:
    own = SteerRecipe(k.model.fingerprints.of(None))
    with pytest.raises(kdn.BadInput) as raised:
        prefill_steered(k, TEXT, replace(own, **settings), "door")
    assert says in str(raised.value)
    assert is_one_sentence(str(raised.value))
    data = json.dumps(json.loads(own.encode()) | settings).encode()
    with pytest.raises(kdn.BadInput) as read:
        prefill_steered(k, TEXT, SteerRecipe.decode(data, "own.json"), "door")
    assert is_one_sentence(str(read.value))
    with pytest.raises(kdn.BadInput, match=r"own\.json is no steering recipe: 'tone' is unknown"):
        SteerRecipe.decode(json.dumps({"model": "a", "tone": 1}).encode(), "own.json")


def test_the_command_line(model: Path, home: Path, k: kdn.Kdn, tmp_path: Path) -> None:
    """Its spans are texts, its recipes files or names; what it cannot use ends with code 2."""
    text, kept = tmp_path / "door.md", RecipeFolder(home)
    text.write_text(TEXT)
    chat = ("chat", "--document", text, "--model", model, "--max-tokens", "1")
    put = ("store", "put", text, "--model", model)
    refused = (
        ((*chat, "--stress", "silver"), "'silver' is not in any document or message"),
        ((*chat, "--stress", "brass key", "--mute", "brass"), "overlap; mark each character once"),
        (("ask", "Which?", "--model", model, "--steer", "quiet"), "or a recipe's file or its name"),
        (("ask", "Which?", "--model", model, "--steer-report"), "give steer too"),
        ((*put, "--steer", kept.file("foreign")), "was made for the model 'an\\x1bother'"),
        ((*put, "--steer", kept.file("vast")), "names layers up to 99"),
        ((*put, "--steer", text), "is no steering recipe"),
    )
    for arguments, says in refused:
        told = command(tmp_path / "home", *arguments, typed="Which?\n")
        assert told.code == 2, told.err
        assert says in told.err.replace("\n", " ")
        assert "Traceback" not in told.err
