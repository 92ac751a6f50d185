"""Tools over HTTP, by the real client: calls that are required keep to their schemas, results come back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

import kdn
from kdn.config import load_config
from kdn.model.text.tools.llama import Llama
from kdn.serve import served
from kdn.testing import TINY_TEMPLATE
from tests.serve.running import Running, running
from tests.serve.scripted import ScriptedService

ASK: list[Any] = [{"role": "user", "content": "Weather in Ulm?"}]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather.",
            "parameters": {
                "type": "object",
                "properties": {"place": {"enum": ["Ulm", "Bonn"]}},
                "required": ["place"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "time"}},
]
WITH_TOOLS = (
    "{% if tools %}{{ '<|turn|>system\nTools: ' + tools | tojson + ' as <tool_call><|end|>\n' }}{% endif %}"
    + TINY_TEMPLATE
)


@pytest.fixture(scope="module", params=["with", "without"])
def server(
    request: pytest.FixtureRequest,
    tiny_model: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    """A template that shows tools, and one that does not."""
    pytest.importorskip("llguidance")
    folder = tiny_model(max_position_embeddings=8192)
    if request.param == "with":
        (folder / "chat_template.jinja").write_text(WITH_TOOLS, "utf-8")
    config = load_config({}, home=tmp_path_factory.mktemp("home"))
    with kdn.open(folder, config=config, dtype="float32") as found, running(served(found)) as own:
        yield own


def chat(server: Running, **body: Any) -> Any:
    asked = {"messages": ASK, "tools": TOOLS, "temperature": 1.0, "seed": 4, "max_tokens": 300}
    name = server.openai.models.list().data[0].id
    return server.openai.chat.completions.create(**{"model": name, **asked, **body})


def test_a_required_call_keeps_to_the_schema_of_its_tool(server: Running) -> None:
    for seed in range(3):
        answer = chat(
            server, tool_choice="required", parallel_tool_calls=False, seed=seed, max_tokens=1000
        )
        (choice,) = answer.choices
        (call,) = choice.message.tool_calls
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        assert call.function.name in ("weather", "time")
        arguments = json.loads(call.function.arguments)
        assert call.function.name == "time" or arguments["place"] in ("Ulm", "Bonn")


def test_a_named_function_is_called_and_streams_as_the_client_expects(server: Running) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    whole = chat(server, tool_choice=named).choices[0]
    (call,) = whole.message.tool_calls
    assert (call.function.name, whole.finish_reason) == ("weather", "stop")
    stream = chat(server, tool_choice=named, stream=True)
    deltas = [chunk.choices[0].delta for chunk in stream if chunk.choices]
    (streamed,) = [one for delta in deltas for one in delta.tool_calls or []]
    assert (streamed.index, streamed.function.arguments) == (0, call.function.arguments)
    assert streamed.id


def test_a_required_call_that_is_cut_off_is_the_beginning_of_a_call(server: Running) -> None:
    """At every length short of the whole: no text, `length`, and arguments that begin the whole ones."""
    named = {"type": "function", "function": {"name": "weather"}}
    whole = chat(server, tool_choice=named)
    (call,) = whole.choices[0].message.tool_calls
    begun = []
    for max_tokens in range(1, whole.usage.completion_tokens, 4):
        (choice,) = chat(server, tool_choice=named, max_tokens=max_tokens).choices
        assert (choice.finish_reason, choice.message.content) == ("length", None)
        stream = chat(server, tool_choice=named, max_tokens=max_tokens, stream=True)
        chunks = [chunk.choices[0] for chunk in stream if chunk.choices]
        assert "".join(one.delta.content or "" for one in chunks) == ""
        assert chunks[-1].finish_reason == "length"
        streamed = [one for chunk in chunks for one in chunk.delta.tool_calls or []]
        cut = choice.message.tool_calls or []
        assert [(c.function.name, c.function.arguments) for c in cut] == [
            (c.function.name, c.function.arguments) for c in streamed
        ]
        begun += [one.function.arguments for one in cut]
    assert begun
    assert all(call.function.arguments.startswith(one) for one in begun)
    assert any(one != call.function.arguments for one in begun)


def test_the_clients_accumulating_stream_understands_calls(server: Running) -> None:
    name = server.openai.models.list().data[0].id
    asked: Any = {"messages": ASK, "tools": TOOLS, "tool_choice": "required", "max_tokens": 300}
    with server.openai.chat.completions.stream(
        model=name, temperature=1, seed=4, parallel_tool_calls=False, **asked
    ) as stream:
        for _ in stream:
            pass
        found = stream.get_final_completion()
    assert found.choices[0].finish_reason == "tool_calls"
    assert found.choices[0].message.tool_calls


def test_results_go_back_as_messages(server: Running) -> None:
    call = chat(server, tool_choice="required", parallel_tool_calls=False).choices[0].message
    history = [
        *ASK,
        call.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "Rain."},
    ]
    first = chat(server, messages=history, tool_choice="none", max_tokens=3)
    assert first.choices[0].message.tool_calls is None
    tokens = server.http.post("/tokenize", json={"messages": history, "return_token_strs": True})
    text = "".join(tokens.json()["token_strs"])
    assert "Rain." in text
    assert f'{{"name": "{call.tool_calls[0].function.name}", "arguments": ' in text


def test_tools_are_shown_to_the_model_unless_it_may_not_call(server: Running) -> None:
    """Their text takes tokens of the prompt; with `none` they are left out."""
    shown, hidden = (
        chat(server, tool_choice=choice, max_tokens=1).usage.prompt_tokens
        for choice in ("auto", "none")
    )
    assert shown > hidden + 100


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice",
        ),
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "description": "<|end|>"}}]},
            "tools",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}],
                    }
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            {"chat_template_kwargs": {"enable_thinking": False}},
            "chat_template_kwargs.enable_thinking",
        ),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_its_name(
    server: Running, body: dict[str, Any], param: str
) -> None:
    answer = server.http.post("/v1/chat/completions", json={"messages": ASK, **body})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_tool_that_holds_a_mark_of_messages_is_refused_where_the_template_shows_it(
    server: Running,
) -> None:
    marked = {"name": "f", "description": f"\ue000{'1' * 5000}\ue001"}
    body = {
        "messages": [*ASK, {"role": "assistant", "content": "Hm."}, *ASK],
        "tools": [{"type": "function", "function": marked}],
        "max_tokens": 1,
    }
    answer = server.http.post("/v1/chat/completions", json=body)
    refused = answer.status_code == 400 and "tools holds the character U+E000" in answer.text
    assert refused or answer.status_code == 200


NAMED = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize("choice", [None, "auto", "required", NAMED])
@pytest.mark.parametrize(
    ("schema", "param", "said"),
    [
        ({"type": "object", "properties": []}, "", "properties must be an object"),
        ({"properties": {"a": {"type": "strin"}}}, "", "Invalid type: strin"),
        ({"type": "array"}, ".type", "an object, and the schema's type is 'array'"),
    ],
)
def test_a_schema_that_is_none_is_refused_whatever_the_choice(
    server: Running, schema: dict[str, Any], param: str, said: str, choice: Any
) -> None:
    broken = {"type": "function", "function": {"name": "f", "parameters": schema}}
    body = {"messages": ASK, "tools": [TOOLS[0], broken], "tool_choice": choice}
    answer = server.http.post("/v1/chat/completions", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, f"tools[1].function.parameters{param}")
    assert said in error["message"]
    # where no call can be made the tools are left out, and their schemas with them
    none = {**body, "tool_choice": "none", "max_tokens": 1}
    assert server.http.post("/v1/chat/completions", json=none).status_code == 200


@pytest.mark.parametrize("choice", [None, "auto", "required", NAMED])
def test_a_schema_that_cannot_be_honoured_is_refused_where_a_call_is_required(
    server: Running, choice: Any
) -> None:
    """Tools of others use keywords and formats of their own; under `auto` nothing is held to them."""
    schema = {"properties": {"size": {"format": "bytes", "type": "string"}}, "not": {}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    body = {"messages": ASK, "tools": [tool], "tool_choice": choice, "max_tokens": 1}
    answer = server.http.post("/v1/chat/completions", json=body)
    if choice in (None, "auto"):
        assert answer.status_code == 200
        return
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "tools[0].function.parameters")
    assert "it uses not, which is not supported" in error["message"]


def test_an_answer_goes_on_with_the_last_message(server: Running) -> None:
    """The prompt ends with the message: nothing of the template follows."""
    history = [*ASK, {"role": "assistant", "content": "It is"}]
    body = {"messages": history, "max_tokens": 1, "temperature": 0}
    going_on = {"continue_final_message": True, "add_generation_prompt": False}
    found = server.http.post("/v1/chat/completions", json={**body, **going_on}).json()
    usual = server.http.post("/v1/chat/completions", json=body).json()
    ending = (
        len("<|end|>\n") - 6 + len("<|turn|>assistant\n") - 7
    )  # two of their tokens are special
    assert usual["usage"]["prompt_tokens"] - found["usage"]["prompt_tokens"] == ending


ALTERNATES = (
    "{% for message in messages %}{% if message['role'] != loop.cycle('user', 'assistant') %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + TINY_TEMPLATE
)


def test_results_of_parallel_calls_are_one_turn_where_users_and_assistants_alternate(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_model(max_position_embeddings=8192)
    (folder / "chat_template.jinja").write_text(ALTERNATES, "utf-8")
    calls = [
        {"id": name, "function": {"name": "weather", "arguments": f'{{"place": "{name}"}}'}}
        for name in ("Ulm", "Bonn")
    ]
    history = [*ASK, {"role": "assistant", "content": None, "tool_calls": calls}]
    history += [{"role": "tool", "tool_call_id": "Ulm", "content": "Rain."}]
    history += [{"role": "tool", "tool_call_id": "Bonn", "content": "Sun."}]
    with (
        kdn.open(folder, config=load_config({}, home=tmp_path), dtype="float32") as found,
        running(served(found)) as server,
    ):
        asked = {"messages": history, "max_tokens": 1}
        assert server.http.post("/v1/chat/completions", json=asked).status_code == 200
        tokens = server.http.post(
            "/tokenize", json={"messages": history, "return_token_strs": True}
        )
    results = [
        "<tool_response>",
        "Rain.",
        "</tool_response>",
        "<tool_response>",
        "Sun.",
        "</tool_response>",
    ]
    assert "\n".join(results) in "".join(tokens.json()["token_strs"])


# --- calls of the model's own choice, from a script --------------------------------------------


def test_a_call_among_text_is_told_apart_whole_and_streamed() -> None:
    answer = (
        'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"place": "Ulm"}}\n</tool_call>'
    )
    service = ScriptedService(answer=answer)
    try:
        with running(service) as server:
            asked: Any = {"model": "scripted", "messages": ASK, "tools": TOOLS}
            (choice,) = server.openai.chat.completions.create(**asked).choices
            assert choice.message.content == "Let me see."
            assert choice.message.tool_calls is not None
            assert choice.message.tool_calls[0].function.arguments == '{"place": "Ulm"}'
            assert choice.finish_reason == "tool_calls"
            stream = server.openai.chat.completions.create(stream=True, **asked)
            chunks = [chunk.choices[0] for chunk in stream]
            assert "".join(one.delta.content or "" for one in chunks) == "Let me see."
            assert [
                one.function.name for chunk in chunks for one in chunk.delta.tool_calls or []
            ] == ["weather"]
            assert chunks[-1].finish_reason == "tool_calls"
            with pytest.raises(openai.BadRequestError, match="cannot be constrained"):
                server.openai.chat.completions.create(
                    response_format={"type": "json_object"}, **asked
                )
    finally:
        service.close()


@pytest.mark.parametrize(
    ("answer", "max_tokens"),
    [('{"name": "Ada", "age": 36}', 100), ('{"title": "A long story about Ulm"}', 27)],
)
def test_an_answer_in_json_beside_tools_of_llamas_way_arrives(answer: str, max_tokens: int) -> None:
    """One token a letter; the second answer is cut off within its title."""
    service = ScriptedService(answer=answer, tool_format=Llama())
    asked: Any = {"model": "scripted", "messages": ASK, "tools": TOOLS, "max_tokens": max_tokens}
    try:
        with running(service) as server:
            (choice,) = server.openai.chat.completions.create(**asked).choices
            assert choice.message.content == answer[:max_tokens]
            assert choice.message.tool_calls is None
            stream = server.openai.chat.completions.create(stream=True, **asked)
            chunks = [chunk.choices[0] for chunk in stream]
            assert "".join(one.delta.content or "" for one in chunks) == answer[:max_tokens]
            assert chunks[-1].finish_reason == choice.finish_reason
    finally:
        service.close()
