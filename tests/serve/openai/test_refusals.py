"""Whatever is wrong with a request, the answer has OpenAI's shape and says what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from kdn.errors import BadConfig, PortInUse
from kdn.serve import Limits, ServeSettings, listen
from tests.serve.running import Running, running
from tests.serve.scripted import ScriptedService

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def service() -> Iterator[ScriptedService]:
    service = ScriptedService(max_context=600)
    yield service
    service.close()


@pytest.fixture(scope="module")
def server(service: ScriptedService) -> Iterator[Running]:
    with running(service) as server:
        yield server


def _fault(server: Running, path: str, **body: Any) -> dict[str, Any]:
    body.setdefault("messages", ASK)
    answer = server.http.post(path, json=body)
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return {"status": answer.status_code, **error}


def test_a_wrong_model_is_not_found_and_the_right_ones_are_named(server: Running) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        server.openai.chat.completions.create(model="gpt-4", messages=ASK)
    assert caught.value.code == "model_not_found"
    assert "scripted" in caught.value.message
    with pytest.raises(openai.NotFoundError):
        server.openai.models.retrieve("gpt-4")


def test_a_prompt_beyond_the_context_is_refused_by_name(server: Running) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.openai.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": "x" * 700}]
        )
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as caught:
        server.openai.chat.completions.create(model="scripted", messages=ASK, max_tokens=600)
    assert "600 were asked" in caught.value.message


def test_the_default_answer_shrinks_to_the_room_that_is_left(
    server: Running, service: ScriptedService
) -> None:
    server.openai.completions.create(model="scripted", prompt="x" * 500)
    assert service.requests[-1].sampling.max_tokens == 100


@pytest.mark.parametrize("body", [b"{", b"", b"[1, 2", b"\xff\xfe", b'{"messages": NaN'])
def test_malformed_json_is_a_bad_request(server: Running, body: bytes) -> None:
    answer = server.http.post(
        "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "critic", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        ({"stop": ""}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"99999999": 1}}, "logit_bias"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
        ({"documents": [{"title": "x"}]}, "documents[0].text"),
    ],
)
def test_an_impossible_value_is_refused_with_its_name(
    server: Running, body: dict[str, Any], param: str
) -> None:
    body = {"messages": ASK, **body}
    answer = server.http.post("/v1/chat/completions", content=json.dumps(body).encode(),
                              headers={"content-type": "application/json"})  # fmt: skip
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("guided_decoding_backend", "xgrammar"),
        ("use_beam_search", True),
        ("reasoning_effort", "high"),
        ("temprature", 0.5),
    ],
)
def test_what_would_change_the_answer_is_never_ignored(
    server: Running, name: str, value: object
) -> None:
    wrong: dict[str, Any] = {name: value}
    fault = _fault(server, "/v1/chat/completions", **wrong)
    assert (fault["status"], fault["param"], fault["code"]) == (400, name, "unsupported_parameter")


def test_what_asks_for_nothing_is_let_through(server: Running) -> None:
    answer = server.openai.chat.completions.create(
        model="scripted",
        messages=ASK,
        presence_penalty=0,
        frequency_penalty=0,
        response_format={"type": "text"},
        user="somebody",
        tools=[],
        max_tokens=1,
    )
    assert answer.choices[0].message.content == "P"


def test_pictures_and_tool_calls_are_refused_by_place(server: Running) -> None:
    picture = {"type": "image_url", "image_url": {"url": "x"}}
    fault = _fault(
        server, "/v1/chat/completions", messages=[{"role": "user", "content": [picture]}]
    )
    assert fault["param"] == "messages[0].content[0]"
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    fault = _fault(server, "/v1/chat/completions", messages=[call, *ASK])
    assert fault["param"] == "messages[0].tool_calls[0].function"


def test_completions_refuse_what_they_cannot_do(server: Running) -> None:
    wrong: list[dict[str, Any]] = [
        {"prompt": "x", "echo": True, "logprobs": 1, "stream": True},
        {"prompt": "x", "best_of": 3, "stream": True},
        {"prompt": "x", "best_of": 1, "n": 2},
        {"prompt": "x", "suffix": "y"},
        {"prompt": "x", "max_tokens": 0},
        {"prompt": ""},
        {"prompt": []},
        {"prompt": [0x110000]},
    ]
    for body in wrong:
        answer = server.http.post("/v1/completions", json=body)
        assert answer.status_code == 400, body
        assert answer.json()["error"]["message"]


def test_unknown_paths_and_methods_have_the_shape_too(server: Running) -> None:
    assert server.http.get("/v1/nothing").json()["error"]["type"] == "not_found_error"
    assert server.http.get("/v1/completions").status_code == 405
    assert "error" in server.http.get("/v1/completions").json()


def test_an_engine_that_fails_is_an_error_whole_streamed_and_in_health() -> None:
    service = ScriptedService()
    try:
        with running(service) as server:
            assert server.http.get("/health").status_code == 200
            service.broken = ValueError("out of memory")
            with pytest.raises(openai.InternalServerError):
                server.openai.chat.completions.create(model="scripted", messages=ASK)
            stream = server.openai.chat.completions.create(
                model="scripted", messages=ASK, stream=True
            )
            with pytest.raises(openai.APIError, match="engine has stopped"):
                list(stream)
            assert server.http.get("/health").status_code == 503
            assert server.metric("kdn_requests_failed_total") == 2
    finally:
        service.close()


def test_a_key_is_asked_for_everywhere_but_at_health() -> None:
    service = ScriptedService()
    settings = ServeSettings(port=0, api_keys=("right", "also right"))
    try:
        with running(service, settings) as server:
            wrong = {"authorization": "Bearer wrong"}
            for path in ("/v1/models", "/metrics", "/docs", "/version"):
                answer = server.http.get(path, headers=wrong)
                assert (answer.status_code, "error" in answer.json()) == (401, True)
            assert server.http.get("/health", headers=wrong).status_code == 200
            assert server.http.get("/v1/models").status_code == 200
            other = {"authorization": "bearer also right"}
            assert server.http.get("/v1/models", headers=other).status_code == 200
            with pytest.raises(openai.AuthenticationError):
                server.openai.with_options(api_key="wrong").models.list()
    finally:
        service.close()


def test_without_a_key_only_this_machine_is_answered(server: Running) -> None:
    elsewhere = {"host": "evil.example"}
    assert server.http.get("/v1/models", headers=elsewhere).status_code == 403
    assert server.http.get("/v1/models", headers={"host": "localhost:1"}).status_code == 200


def test_a_body_beyond_the_limit_is_refused_with_or_without_a_length() -> None:
    service = ScriptedService()
    settings = ServeSettings(port=0, limits=Limits(body_bytes=1000))
    try:
        with running(service, settings) as server:
            headers = {"content-type": "application/json"}
            stated = server.http.post("/v1/completions", content=b"x" * 1001, headers=headers)
            assert stated.status_code == 413
            pieces = iter([b"x" * 600, b"x" * 600])
            unstated = server.http.post("/v1/completions", content=pieces, headers=headers)
            assert (unstated.status_code, "error" in unstated.json()) == (413, True)
    finally:
        service.close()


def test_a_taken_port_and_an_open_interface_are_refused_before_anything_runs() -> None:
    listening = listen(ServeSettings(port=0))
    with pytest.raises(PortInUse, match="choose another --port"):
        listen(ServeSettings(port=listening.getsockname()[1]))
    listening.close()
    with pytest.raises(BadConfig, match="no API key"):
        ServeSettings(host="0.0.0.0")
    assert ServeSettings(host="0.0.0.0", allow_unauthenticated=True).loopback is False
    with pytest.raises(BadConfig, match="cannot listen"):
        listen(ServeSettings(host="192.0.2.1", api_keys=("k",)))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ratio": 0.5}, "ratio is of blending"),
        ({"ratio": 0.5, "reuse": "exact"}, "ratio is of blending"),
        ({"share": "best", "reuse": False}, "leave one out"),
        ({"reuses": True}, r"kdn\.reuses: unknown here; leave it out"),
        ({"reuse": "blend", "ratio": 2}, r" kdn\.ratio: found 2; give 1 or less"),
    ],
)
def test_an_option_that_would_not_be_heeded_is_refused(
    server: Running, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=says):
        server.openai.completions.create(model="scripted", prompt="x", extra_body={"kdn": options})


def test_keys_that_cannot_be_read_stop_a_server_before_it_listens(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("Hold the red button\n")
    with pytest.raises(BadConfig, match="line 1: write the SHA-256 of a key"):
        listen(ServeSettings(port=0, key_file=keys))
