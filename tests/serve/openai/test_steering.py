"""`kdn.steer` over HTTP: which columns a request marks, and what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from anyio import to_thread
from openai.types.chat import ChatCompletionMessageParam

import kdn
from kdn.api.steered import prefill_steered
from kdn.reuse.steer import LOOK_SHARE, RecipeFolder, Steer, SteerRecipe
from kdn.serve import Limits, ServeSettings, create_app, served
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
    assert service.requests[-1].techniques == (
        Steer(sentences=(range(23),), least_share=LOOK_SHARE),
    )


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


def test_a_report_has_to_tell_of_something(server: Running) -> None:
    extra = {"kdn": {"steer_report": True}}
    with pytest.raises(openai.BadRequestError, match="give steer too"):
        server.openai.chat.completions.create(model="scripted", messages=ASK, extra_body=extra)
    with pytest.raises(openai.BadRequestError, match="use chat/completions"):
        server.openai.completions.create(model="scripted", prompt="x", extra_body=extra)


def test_where_no_recipes_are_kept_none_is_found(server: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="this server keeps no steering recipes"):
        ask(server, "loud")


# --- with a model --------------------------------------------------------------------------------

TEXT = "The lock of the red door opens with the brass key. It hangs behind the clock in the hall."


@pytest.fixture(scope="module")
def opened(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[kdn.Kdn]:
    home = tmp_path_factory.mktemp("home")
    with kdn.open(tiny_model("llama", max_position_embeddings=2048), home=home) as found:
        folder = RecipeFolder(home)
        folder.folder.mkdir()
        recipe = SteerRecipe(
            found.model.fingerprints.of(None), weight=5, share=0.4, combine="union"
        )
        folder.file("loud").write_bytes(recipe.encode())
        folder.file("foreign").write_bytes(replace(recipe, model="another").encode())
        folder.file("broken").write_text("{}")
        prefill_steered(found, TEXT, recipe, "door")
        yield found
        found.check()


@pytest.fixture(scope="module")
def real(opened: kdn.Kdn) -> Iterator[Running]:
    with running(served(opened)) as server:
        yield server


def asked(server: Running, stream: bool = False, **options: object) -> Any:
    body = {
        "messages": ASK,
        "documents": [{"id": "door", "text": TEXT}],
        "max_tokens": 4,
        "temperature": 0,
        "stream": stream,
        "kdn": {"keep": "nothing", **options},
    }
    return server.http.post("/v1/chat/completions", json=body)


def test_a_recipe_by_its_name_takes_the_texts_that_it_has_steered(real: Running) -> None:
    plain = asked(real).json()
    steered = asked(real, steer="loud", steer_report=True).json()
    assert (plain["kdn"]["lossy"], "steering" in plain["kdn"]) == (0, False)
    assert steered["kdn"]["lossy"] > len(TEXT.split())
    report = steered["kdn"]["steering"]
    assert report["kl"] > 0
    assert 1 <= report["tokens"] <= 4
    assert report["plain_text"] == plain["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("quiet", "no steering recipe is named 'quiet'; there are broken, foreign, loud"),
        ("../loud", "no steering recipe is named '../loud'"),
        ("foreign", "was made for the model another"),
        ("broken", "broken.json is no steering recipe"),
    ],
)
def test_a_recipe_that_cannot_be_used_is_a_bad_request(real: Running, name: str, says: str) -> None:
    refused = asked(real, steer=name)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "kdn.steer"
    assert says in refused.json()["error"]["message"]


def test_the_report_compares_the_tokens_that_were_drawn(real: Running, opened: kdn.Kdn) -> None:
    """Its NLL of the first token is what log-probabilities of the same request say."""
    spans = [{"text": "brass key", "weight": 10}]
    report = asked(real, steer=spans, steer_report=True).json()["kdn"]["steering"]
    of_python = opened.generate(
        "Which key?",
        [{"id": "door", "text": TEXT}],
        steer=spans,
        steer_report=True,
        max_tokens=4,
        temperature=0,
        retention=kdn.core.Retention.NOTHING,
    ).steering
    assert of_python is not None
    assert report["kl"] == pytest.approx(of_python.kl, abs=1e-5)
    assert report["nll"] == pytest.approx(of_python.nll)
    assert report["plain_nll"] >= 0
    last = asked(real, stream=True, steer=spans, steer_report=True).text.split("data: ")[-2]
    assert '"plain_text":"' in last
    still = asked(real, steer=[{"text": "brass key", "weight": 1}], steer_report=True).json()
    found = still["kdn"]["steering"]
    assert found["kl"] == pytest.approx(0, abs=1e-9)
    assert found["nll"] == found["plain_nll"]


def test_a_report_takes_the_place_of_its_answer(opened: kdn.Kdn) -> None:
    """One request may be in work, and the answer that the report compares has ended."""
    options: dict[str, Any] = {"steer": [{"text": "brass key", "weight": 10}], "steer_report": True}
    body = {"input": "Which key?", "documents": [{"text": TEXT}], "max_output_tokens": 4}
    settings = ServeSettings(port=0, limits=Limits(caller_requests=1))
    with running(served(opened), settings) as server:
        *_, chat, done = asked(server, stream=True, **options).text.split("data: ")
        assert ('"plain_text":"' in chat, done) == (True, "[DONE]\n\n")
        response = server.http.post("/v1/responses", json={**body, "stream": True, "kdn": options})
        assert '"plain_text":"' in response.text.split("data: ")[-1]


def test_reports_are_worked_out_on_threads_of_their_own(opened: kdn.Kdn) -> None:
    """Every thread for other routes is busy: many reports would have taken those, too."""
    app = create_app(served(opened), ServeSettings(port=0))
    options = {"steer": [{"text": "brass key", "weight": 10}], "steer_report": True}
    body = {"messages": ASK, "documents": [{"text": TEXT}], "max_tokens": 2, "kdn": options}

    async def ask() -> httpx.Response:
        threads = to_thread.current_default_thread_limiter()
        for _ in range(int(threads.total_tokens)):
            await threads.acquire_on_behalf_of(object())
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")
        async with asyncio.timeout(30), client as http:
            return await http.post("/v1/chat/completions", json=body)

    assert asyncio.run(ask()).json()["kdn"]["steering"]["tokens"] == 2


def test_a_report_that_fails_is_told_after_the_whole_answer() -> None:
    """The fault is in what the report asks: the prompt and the first token of "Pari"."""
    spans = [{"text": "brass key", "weight": 10}]
    with closing(ScriptedService(fault="key?P")) as service, running(service) as server:
        told = asked(server, stream=True, steer=spans, steer_report=True).text.split("data: ")
    *tokens, ended, fault, done = told[1:]
    assert [json.loads(one)["choices"][0]["delta"]["content"] for one in tokens[1:]] == [*"Pari"]
    assert json.loads(ended)["choices"][0]["finish_reason"] == "length"
    assert json.loads(fault)["error"]["type"] == "server_error"
    assert done == "[DONE]\n\n"


def test_a_report_of_a_look_looks_at_the_question_alone(real: Running) -> None:
    report = asked(real, steer="look", steer_report=True).json()["kdn"]["steering"]
    assert report["kl"] >= 0
