"""`kdn.steer` over HTTP: which columns a request marks, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from kdn.reuse.steer import Steer
from tests.serve.running import Running, running
from tests.serve.scripted import ScriptedService

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Which key?"}]
DOCUMENTS = [{"id": "door", "text": "The brass key opens it."}]


@pytest.fixture(scope="module")
def service() -> Iterator[ScriptedService]:
    service = ScriptedService()
    yield service
    service.close()


@pytest.fixture(scope="module")
def server(service: ScriptedService) -> Iterator[Running]:
    with running(service) as server:
        yield server


def ask(server: Running, steer: object) -> Any:
    extra = {"documents": DOCUMENTS, "kdn": {"steer": steer}}
    return server.openai.chat.completions.create(model="scripted", messages=ASK, extra_body=extra)


def test_spans_become_factors_of_columns(server: Running, service: ScriptedService) -> None:
    ask(
        server,
        [
            {"text": "brass", "weight": 3},
            {"document": "door", "start": 10, "stop": 12, "weight": 0},
        ],
    )
    (option,) = service.requests[-1].techniques
    assert isinstance(option, Steer)
    expected = {4: 3, 5: 3, 6: 3, 7: 3, 8: 3, 10: 0.01, 11: 0.01}
    assert dict(option.factors) == pytest.approx(expected)


def test_a_look_marks_the_sentences_of_documents(server: Running, service: ScriptedService) -> None:
    ask(server, "look")
    assert service.requests[-1].techniques == (Steer(sentences=(range(23),)),)


@pytest.mark.parametrize(
    ("steer", "says"),
    [
        ([{"text": "silver", "weight": 3}], "'silver' is not in any document or message"),
        ([{"text": "brass", "weight": 3}, {"text": "brass key", "weight": 3}], "overlap"),
        ([{"text": "brass", "weight": -2}], "give a number from 0 to 1000"),
        ([{"text": "brass"}], "weight"),
        ([{"text": "brass", "weight": "loud"}], "weight"),
        ("loud", "look"),
    ],
)
def test_what_cannot_be_steered_is_a_bad_request(server: Running, steer: object, says: str) -> None:
    with pytest.raises(openai.BadRequestError, match=says):
        ask(server, steer)


def test_plain_completions_have_nothing_to_mark(server: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="use chat/completions"):
        server.openai.completions.create(
            model="scripted", prompt="x", extra_body={"kdn": {"steer": "look"}}
        )
