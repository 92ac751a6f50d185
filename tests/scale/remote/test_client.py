"""Servers that answer with anything: without an end, in drips, in another shape. Each is one sentence."""

from __future__ import annotations

import json
import socket
import threading
import tracemalloc
from typing import Any

import pytest

from kdn.errors import BadInput, EndpointFailed, Unreachable
from kdn.model import Message
from kdn.rag.endpoint import OpenAiEndpoint
from kdn.rank import Choice, ChoiceProbabilities, Conversation
from kdn.scale.remote import JsonClient, RemoteEngine
from tests.answering import Answer, answering

HEAD = b"HTTP/1.1 200 OK\r\n"
YES_NO = (Choice("Yes", 1), Choice("No", 2))


def _endless(_: str, connection: socket.socket) -> None:
    connection.sendall(HEAD + b"\r\n")
    while True:
        connection.sendall(b" " * 65536)


def _dripping(_: str, connection: socket.socket) -> None:
    connection.sendall(HEAD + b"content-length: 99999\r\n\r\n")
    while True:
        connection.sendall(b" ")
        threading.Event().wait(0.02)


def _broken(_: str, connection: socket.socket) -> None:
    connection.sendall(HEAD + b"content-length: 99999\r\n\r\n{}")
    connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (_endless, "more than 4194304 bytes"),
        (_dripping, "did not end in time"),
        (_broken, "99997 more expected"),
    ],
)
def test_an_answer_without_an_end_is_read_to_a_bound(answer: Answer, why: str) -> None:
    with answering(answer) as place, JsonClient(f"http://{place}", tries=1, timeout_s=5) as client:
        tracemalloc.start()
        with pytest.raises(Unreachable, match=why):
            client.get("/v1/models")
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
        tracemalloc.stop()


def test_an_embedder_that_drips_is_left_at_the_time_out() -> None:
    with answering(_dripping) as place:
        endpoint = OpenAiEndpoint(f"http://{place}/v1", "m", timeout_s=0.5)
        with pytest.raises(EndpointFailed, match="its answer did not end in time"):
            endpoint.call("embeddings", {})


def _json(answers: dict[str, Any]) -> Answer:
    def say(line: str, connection: socket.socket) -> None:
        body = json.dumps(answers[line.split()[1]]).encode()
        connection.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)

    return say


MODELS = {"/v1/models": {"data": [{"id": "m"}]}}


@pytest.mark.parametrize("models", [[], {"data": ["m"]}, {"data": [{}]}, {"data": 3}, 3])
def test_a_list_of_models_of_another_shape_is_refused(models: Any) -> None:
    refused = pytest.raises(BadInput, match="/v1/models names no model")
    said = {"/v1/models": models}
    with answering(_json(said)) as place, JsonClient(f"http://{place}") as client, refused:
        RemoteEngine(client)


@pytest.mark.parametrize("tokens", [{}, {"tokens": "ab"}, {"tokens": [[1]]}, {"tokens": [1.5]}])
def test_tokens_of_another_shape_are_refused(tokens: Any) -> None:
    refused = pytest.raises(BadInput, match="has no /tokenize")
    said = MODELS | {"/tokenize": tokens}
    with answering(_json(said)) as place, JsonClient(f"http://{place}") as client, refused:
        RemoteEngine(client).choices(["Yes", "No"])


def _first(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"logprobs": {"content": [fields]}}]}


@pytest.mark.parametrize(
    ("chat", "why"),
    [
        ({}, "no log-probabilities"),
        ({"choices": [{"logprobs": {"top_logprobs": [[]]}}]}, "no log-probabilities"),
        (_first(token="Yes", logprob=float("nan"), top_logprobs=[]), "no log-probabilities"),
        (_first(token="Yes", logprob="high", top_logprobs=[]), "no log-probabilities"),
        (_first(token="Yes", logprob=-1, top_logprobs=[]), "has no /detokenize"),
    ],
)
def test_an_answer_of_another_shape_is_refused(chat: Any, why: str) -> None:
    said = MODELS | {"/v1/chat/completions": chat, "/detokenize": {"text": "Yes"}}
    asked, refused = Conversation((Message("user", "Is it?"),)), pytest.raises(BadInput, match=why)
    with answering(_json(said)) as place, JsonClient(f"http://{place}") as client, refused:
        list(RemoteEngine(client).ask_each([asked], YES_NO))


def test_answers_of_other_weights_by_the_same_name_are_not_mixed() -> None:
    """The server starts again with others between two questions. One that tells none is believed."""
    both = [{"token": text, "logprob": -1.0} for text in ("Yes", "No")]
    chat = _first(token="Yes", logprob=-1.0, top_logprobs=both)
    said = {
        "/v1/models": {"data": [{"id": "m", "weights": "x"}]},
        "/v1/chat/completions": chat,
        "/detokenize": {"prompt": "Yes"},
    }
    question = Conversation((Message("user", "Is it?"),))
    with (
        answering(_json(said)) as place,
        RemoteEngine(JsonClient(f"http://{place}")) as engine,
    ):
        for told in ({}, {"system_fingerprint": None}, {"system_fingerprint": "x"}):
            said["/v1/chat/completions"] = chat | told
            [found] = engine.ask_each([question], YES_NO)
            assert isinstance(found, ChoiceProbabilities)
        said["/v1/chat/completions"] = chat | {"system_fingerprint": "y"}
        with pytest.raises(BadInput, match="other weights by the name 'm' than when this began"):
            list(engine.ask_each([question], YES_NO))


@pytest.mark.parametrize(
    "usage", [None, 3, {"prompt_tokens": "9"}, {"prompt_tokens": 9, "prompt_tokens_details": 3}]
)
def test_a_usage_of_another_shape_counts_nothing(usage: Any) -> None:
    both = [{"token": text, "logprob": -1.0} for text in ("Yes", "No")]
    chat = _first(token="Yes", logprob=-1.0, top_logprobs=both) | {"usage": usage}
    said = {"/v1/chat/completions": chat, "/detokenize": {"prompt": "Yes"}}
    with (
        answering(_json(MODELS | said)) as place,
        RemoteEngine(JsonClient(f"http://{place}")) as on,
    ):
        [found] = on.ask_each([Conversation((Message("user", "Is it?"),))], YES_NO)
    assert isinstance(found, ChoiceProbabilities)
    assert found.usage.exact == 0
    assert found.probabilities == (0.5, 0.5)
