"""What a router makes of the beginning and the end of an answer, before servers that play a part."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from kdn.scale.router.events import begins_answer, told_tokens_of
from kdn.scale.router.fleet import ToldTokens
from tests.answering import Answer, answering
from tests.scale.served import routed

LONG = "The tide tables of the northern harbours. " * 100
"""4,200 characters: eight chunks of 512 characters, or of 128 tokens."""


def said(kind: str, **response: Any) -> bytes:
    """An event of `/v1/responses`."""
    return json.dumps({"type": kind, "response": {"id": "resp_1", **response}}).encode()


@pytest.mark.parametrize(
    ("data", "begins"),
    [
        (said("response.created"), False),
        (said("response.in_progress"), False),
        (said("response.queued"), False),
        (said("response.failed", error={"code": "server_error"}), None),
        (said("response.failed", error={"code": "invalid_prompt"}), True),
        (said("response.completed"), True),
        (said("response.incomplete"), True),
        (b'{"type": "response.output_text.delta", "delta": "a"}', True),
        (b'{"choices": [{"delta": {"role": "assistant", "content": ""}}]}', False),
        (b'{"choices": [{"delta": {"content": "a"}}]}', True),
        (b'{"choices": [{"text": "a"}]}', True),
        (b'{"choices": []}', False),
        (b'{"choices": 5}', True),
        (b'{"error": {"type": "server_error"}}', None),
        (b'{"error": {"type": "InternalServerError", "code": 500}}', None),
        (b'{"error": {"type": "invalid_request_error"}}', True),
        (b'{"delta": "of an API that is not known here"}', True),
        (b"[DONE]", True),
    ],
)
def test_an_answer_begins_with_a_part_of_it_in_any_api(data: bytes, begins: bool | None) -> None:
    assert begins_answer(data) is begins


USELESS = b'{"usage": {"prompt_tokens_details": {"cached_tokens": 5}}}'
"""Five of how many?"""


def test_every_api_tells_how_much_was_stored() -> None:
    newer = {"usage": {"input_tokens": 9, "input_tokens_details": {"cached_tokens": 5}}}
    older = {"usage": {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 6}}}
    assert told_tokens_of(json.dumps(newer).encode()) == ToldTokens(9, 5)
    assert told_tokens_of(json.dumps(older).encode()) == ToldTokens(9, 6)
    assert told_tokens_of(said("response.completed", **newer)) == ToldTokens(9, 5)
    for nothing in (said("response.created", usage=None), b'{"response": "none"}', b"[5]", USELESS):
        assert told_tokens_of(nothing) is None


def playing(kind: str, body: bytes, asked: list[str]) -> Answer:
    """A server that answers every prompt so, and notes each."""

    def answer(line: str, connection: socket.socket) -> None:
        told = b"{}"
        if line.startswith("POST"):
            asked.append(line)
            told = body
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(told)}\r\n\r\n"
        connection.sendall(head.encode() + told)

    return answer


def events(*told: bytes) -> bytes:
    return b"".join(b"data: " + one + b"\n\n" for one in told)


def test_a_response_that_failed_before_its_text_is_another_server_s() -> None:
    failed = events(said("response.created"), said("response.failed"))
    whole = events(said("response.created"), said("response.completed"))
    asked: list[str] = []
    with (
        answering(playing("text/event-stream", failed, asked)) as one,
        answering(playing("text/event-stream", whole, asked)) as other,
        routed(f"http://{one}", f"http://{other}", rule="round-robin") as client,
    ):
        answer = client.post("/v1/responses", json={"input": "x", "stream": True})
    assert (answer.status_code, answer.content, len(asked)) == (200, whole, 2)


def test_a_body_that_answers_the_wish_for_a_stream_is_passed_on() -> None:
    """Not every route has streams, and some servers pass over the wish for one."""
    asked: list[str] = []
    with (
        answering(playing("application/json", b'{"data": []}', asked)) as place,
        routed(f"http://{place}") as client,
    ):
        answer = client.post("/v1/embeddings", json={"input": "x", "stream": True})
    assert (answer.status_code, answer.json(), len(asked)) == (200, {"data": []}, 1)


USED = {"usage": {"input_tokens": 1050, "input_tokens_details": {"cached_tokens": 0}}}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", json.dumps(USED).encode()),
        (
            "text/event-stream",
            events(said("response.created"), said("response.completed", text=LONG * 10, **USED)),
        ),
    ],
)
def test_a_server_that_had_less_stored_is_believed_less(kind: str, body: bytes) -> None:
    """It has answered prompts of eight chunks each, and says of the second, in its turn, that it has
    none of it: the eight of the first, which it used before, are forgotten."""
    asked: list[str] = []
    with answering(playing(kind, body, asked)) as place, routed(f"http://{place}") as client:
        stored = []
        for text in (LONG, LONG.upper(), LONG.upper()):
            prompt = {"input": text, "stream": kind != "application/json"}
            assert client.post("/v1/responses", json=prompt).status_code == 200
            stored.append(client.get("/v1/router").json()["servers"][0]["stored_chunks"])
    assert stored == [8, 16, 8]


def test_a_body_of_too_many_values_is_refused_as_servers_do() -> None:
    """1,100,001 empty lists: 2,200,002 brackets and commas beside the object's own, of 2,097,152."""
    asked: list[str] = []
    with (
        answering(playing("application/json", b"{}", asked)) as place,
        routed(f"http://{place}") as client,
    ):
        many = b'{"prompt":[' + b"[]," * 1_100_000 + b"[]]}"
        answer = client.post("/v1/completions", content=many)
        assert answer.status_code == 413
        assert "at most 2097152 are read" in answer.json()["error"]["message"]
        deep = b'{"prompt":' + b"[" * 200 + b"]" * 200 + b"}"
        answer = client.post("/v1/completions", content=deep)
        assert answer.status_code == 400
        assert "nested deeper than 100 levels" in answer.json()["error"]["message"]
        answer = client.post("/v1/completions", content=b'{"prompt": ')
        assert "the body is not valid JSON" in answer.json()["error"]["message"]
    assert asked == []
