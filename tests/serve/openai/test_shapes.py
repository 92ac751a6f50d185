"""Bodies of a wrong shape, paths that are not there: each refusal says what was found and what to give."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serve.running import Running, running
from tests.serve.scripted import ScriptedService

JSON = {"content-type": "application/json"}
CONTENT = "messages[0].content"
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(ScriptedService()) as found:
        yield found


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"max_tokens": -1}, "max_tokens", "max_tokens: found -1; give 1 or more"),
        ({"max_tokens": 1.5}, "max_tokens", "max_tokens: found 1.5; give a whole number"),
        ({"max_tokens": True}, "max_tokens", "max_tokens: found true; give a whole number"),
        ({"temperature": "hot"}, "temperature", 'temperature: found "hot"; give a number'),
        ({"temperature": 3}, "temperature", "temperature: found 3; give 2 or less"),
        ({"top_p": 0}, "top_p", "top_p: found 0; give more than 0"),
        ({"stream": "yes"}, "stream", 'stream: found "yes"; give true or false'),
        ({"stop": 5}, "stop", "stop: found 5; give a text or a list"),
        ({"stop": ["a"] * 65}, "stop", "stop: has 65 items; give 64 at most"),
        ({"messages": []}, "messages", "messages: has 0 items; give 1 or more"),
        ({"messages": "Hi"}, "messages", 'messages: found "Hi"; give a list'),
        ({"messages": [5]}, "messages[0]", "messages[0]: found 5; give an object"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "messages[0].role: it is missing; give it"),
        ({"messages": [{"role": "user"}]}, CONTENT, f"{CONTENT} is missing; give a text"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, CONTENT, f"{CONTENT}: holds a lone"),
        ({"model": "m" * 2000}, "model", "model: has 2,000 characters; give "),
        ({"kdn": {"share": "lol"}}, "kdn.share", "kdn.share: found \"lol\"; give 'exact', "),
        ({"stream_options": {"odd": 1}}, "stream_options.odd", "stream_options.odd: unknown here"),
        ({"stop_token_ids": [10**7]}, "stop_token_ids", "token id 10000000: ids here are 0.."),
    ],
)  # fmt: skip
def test_a_wrong_shape_is_told_with_what_was_found(
    server: Running, body: dict[str, Any], param: str, says: str
) -> None:
    sent = json.dumps({"messages": HI, "max_tokens": 4} | body)
    told = server.http.post("/v1/chat/completions", content=sent, headers=JSON)
    error = told.json()["error"]
    assert (told.status_code, error["param"]) == (400, param)
    assert error["message"].startswith(says)


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (b"", "the body: it is missing; give it"),
        (b"[1]", "the body: found a list; give an object"),
        (b'{"model": ', "the body is not valid JSON after 10 characters: "),
    ],
)
def test_a_body_that_is_none_is_told(server: Running, sent: bytes, says: str) -> None:
    told = server.http.post("/v1/chat/completions", content=sent, headers=JSON)
    assert told.status_code == 400
    assert told.json()["error"]["message"].startswith(says)


def test_a_path_that_is_not_there_and_a_wrong_method_say_what_there_is(server: Running) -> None:
    absent = server.http.post("/v1/chats", json={})
    assert absent.status_code == 404
    assert absent.json()["error"]["message"].startswith("there is no /v1/chats here; ")
    closed = server.http.get("/v1/store/stat")
    assert "serve.store_key" in closed.json()["error"]["message"]
    wrong = server.http.get("/v1/chat/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert wrong.json()["error"]["message"] == "/v1/chat/completions takes no GET; send POST"
