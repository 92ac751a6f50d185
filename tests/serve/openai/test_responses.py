"""The newer API by the real client: texts, calls and forms, whole and streamed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

import kdn
from kdn.config import load_config
from kdn.core import Retention
from kdn.errors import BadInput
from kdn.reuse.steer import Steer
from kdn.serve import served
from kdn.serve.errors import Refused
from tests.serve.running import Running, running
from tests.serve.scripted import ANSWER, ScriptedService

WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"place": {"enum": ["Ulm", "Bonn"]}},
        "required": ["place"],
        "additionalProperties": False,
    },
}


class Mood(BaseModel):
    mood: Literal["good", "bad"]


@pytest.fixture(scope="module")
def service() -> Iterator[ScriptedService]:
    service = ScriptedService()
    yield service
    service.close()


@pytest.fixture(scope="module")
def server(service: ScriptedService) -> Iterator[Running]:
    with running(service) as server:
        yield server


@pytest.fixture(scope="module")
def tiny(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    pytest.importorskip("llguidance")
    config = load_config({}, home=tmp_path_factory.mktemp("home"))
    folder = tiny_model(max_position_embeddings=4096)
    with kdn.open(folder, config=config, dtype="float32") as found, running(served(found)) as own:
        yield own


def test_a_text_is_answered_and_counted(server: Running, service: ScriptedService) -> None:
    found = server.openai.responses.create(
        model="scripted", input="Capital of France?", instructions="Be short."
    )
    assert (found.output_text, found.status) == (ANSWER, "completed")
    assert found.usage is not None
    assert found.usage.output_tokens == len(ANSWER)
    prompt = "".join(map(chr, service.requests[-1].prompt.token_ids))
    assert prompt == "<system>Be short.<user>Capital of France?"


def test_an_answer_that_is_cut_off_is_incomplete(server: Running) -> None:
    found = server.openai.responses.create(model="scripted", input="x", max_output_tokens=5)
    assert (found.output_text, found.status) == (ANSWER[:5], "incomplete")
    assert found.incomplete_details is not None
    assert found.incomplete_details.reason == "max_output_tokens"


def test_a_conversation_comes_as_items(server: Running, service: ScriptedService) -> None:
    items: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "Rain."},
    ]
    server.openai.responses.create(model="scripted", input=items)
    prompt = "".join(map(chr, service.requests[-1].prompt.token_ids))
    assert "Weather?" in prompt
    assert '{"name": "weather", "arguments": {}}' in prompt
    assert "Rain." in prompt


def test_a_stream_tells_the_same_in_events(server: Running) -> None:
    events = list(server.openai.responses.create(model="scripted", input="x", stream=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == ANSWER
    assert [event.sequence_number for event in events] == list(range(len(events)))
    with server.openai.responses.stream(model="scripted", input="x") as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == ANSWER


def test_a_form_is_kept_to_and_parsed(tiny: Running) -> None:
    name = tiny.openai.models.list().data[0].id
    found = tiny.openai.responses.parse(
        model=name, input="How is it?", text_format=Mood, max_output_tokens=300, temperature=1
    )
    assert found.output_parsed is not None
    assert found.output_parsed.mood in ("good", "bad")


def weather_call(tiny: Running, **more: Any) -> dict[str, Any]:
    """What asks the model for a call of the one tool."""
    return {
        "model": tiny.openai.models.list().data[0].id,
        "input": "Weather?",
        "tools": [WEATHER],
        "tool_choice": {"type": "function", "name": "weather"},
        "temperature": 0,
        **more,
    }


def test_a_required_call_comes_whole_and_streamed(tiny: Running) -> None:
    asked = weather_call(tiny, max_output_tokens=300)
    (call,) = tiny.openai.responses.create(**asked).output
    assert call.type == "function_call"
    assert call.name == "weather"
    events = list(tiny.openai.responses.create(stream=True, **asked))
    (done,) = [e for e in events if e.type == "response.function_call_arguments.done"]
    assert done.arguments == call.arguments
    assert events[-1].type == "response.completed"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": [{"type": "item_reference"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "x", "background": True}, "background"),
        ({"input": "x", "max_tool_calls": 3}, "max_tool_calls"),
        ({"input": "x", "text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"input": []}, "input"),
        ({"input": "x" * 5000}, "input"),
        ({"input": "x", "max_output_tokens": 5000}, "input"),
        ({"input": [{"role": "user", "content": 3}]}, "input[0].content"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        (
            {
                "instructions": "x",
                "input": [
                    {"role": "user", "content": "x"},
                    {"type": "function_call", "name": "f", "arguments": "{}"},
                    {"type": "function_call", "name": "f", "arguments": "[]"},
                ],
            },
            "input[2].arguments",
        ),
        ({"input": [{"type": "function_call_output", "output": 3}]}, "input[0].output"),
        ({"input": "x", "tools": [{**WEATHER, "name": "a b"}]}, "tools[0].name"),
        (
            {"input": "x", "tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}},
            "tool_choice",
        ),
        ({"input": "x", "reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"input": "x", "text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"input": "x", "documents": [{"title": "t"}]}, "documents[0].text"),
        ({"input": "x", "kdn": {"ratio": 0.5}}, "kdn.ratio"),
        ({"input": "x", "kdn": {"colour": 1}}, "kdn.colour"),
        ({"input": [{"role": "user", "content": "\ud800"}]}, "input"),
        ({"input": "x", "tools": [{**WEATHER, "parameters": {"\ud800": 1}}]}, "tools"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_its_name(
    server: Running, body: dict[str, Any], param: str
) -> None:
    headers = {"content-type": "application/json"}
    answer = server.http.post("/v1/responses", content=json.dumps(body).encode(), headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_fault_is_told_in_this_apis_words(server: Running) -> None:
    body = {"input": [{"role": "user", "content": "x"}, {"role": "robot", "content": "x"}]}
    said = server.http.post("/v1/responses", json=body).json()["error"]["message"]
    assert said.startswith("input[1].role is 'robot'")


def test_documents_and_kdn_mean_what_they_mean_in_a_chat(
    server: Running, service: ScriptedService
) -> None:
    """The second answer reuses what the first has computed; `keep` and `reuse` reach the engine."""
    more: Any = {
        "documents": [{"text": "Ulm lies on the Danube.", "id": "ulm"}],
        "kdn": {"keep": "shared", "steer": [{"text": "Danube", "weight": 4}]},
    }
    for _ in range(2):
        found = server.openai.responses.create(model="scripted", input="Where?", extra_body=more)
    asked = service.requests[-1]
    assert asked.prompt.segments[0].source == "ulm"
    assert asked.retention is Retention.SHARED
    assert asked.option(Steer) is not None
    told: Any = found.model_extra
    assert told["kdn"]["exact"] == asked.prompt.num_tokens - 1
    server.openai.responses.create(
        model="scripted", input="x", extra_body={"kdn": {"reuse": False}}
    )
    assert not service.requests[-1].reuse
    events = list(
        server.openai.responses.create(
            model="scripted", input="Where?", stream=True, extra_body=more
        )
    )
    last: Any = events[-1]
    assert last.response.model_extra["kdn"]["exact"] == asked.prompt.num_tokens - 1


def test_a_call_that_is_cut_off_is_incomplete(tiny: Running) -> None:
    asked = weather_call(tiny)
    whole = tiny.openai.responses.create(max_output_tokens=300, **asked)
    assert whole.usage is not None
    most = whole.usage.output_tokens - 20
    cut = tiny.openai.responses.create(max_output_tokens=most, **asked)
    assert (cut.status, cut.output_text) == ("incomplete", "")
    (call,), (begun,) = whole.output, cut.output
    assert call.type == begun.type == "function_call"
    assert (call.status, begun.status) == ("completed", "incomplete")
    assert call.arguments.startswith(begun.arguments)
    *_, last = tiny.openai.responses.create(max_output_tokens=most, stream=True, **asked)
    assert last.type == "response.incomplete"
    assert last.response.output[0].status == "incomplete"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("out of memory"), "server_error"),
        (BadInput("nothing can follow"), "invalid_prompt"),
        (Refused("too much at once", status=429), "rate_limit_exceeded"),
    ],
)
def test_a_failure_is_told_in_the_stream_by_whose_fault_it_is(error: Exception, code: str) -> None:
    service = ScriptedService()
    try:
        with running(service) as server:
            service.broken = error
            *_, last = server.openai.responses.create(model="scripted", input="x", stream=True)
            assert last.type == "response.failed"
            assert last.response.error is not None
            assert last.response.error.code == code
    finally:
        service.close()


def test_an_engine_that_fails_is_a_server_error() -> None:
    service = ScriptedService()
    try:
        with running(service) as server:
            service.broken = ValueError("out of memory")
            with pytest.raises(openai.InternalServerError):
                server.openai.responses.create(model="scripted", input="x")
    finally:
        service.close()
