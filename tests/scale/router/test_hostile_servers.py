"""A router before servers that answer with more than it should hold."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from functools import partial

import httpx
import pytest

from kdn.scale.router.fetch import fetch
from tests.answering import answering
from tests.scale.served import routed, until

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


@pytest.mark.parametrize(("streams", "held"), [(False, 9 << 20), (True, 128 << 10)])
def test_a_large_answer_is_passed_on_before_it_ends(streams: bool, held: int) -> None:
    """8 MiB of an answer are held, and 64 KiB of a stream without a token; more reaches the client."""
    arrived = threading.Event()
    head = HEAD.replace(b"application/json", b"text/event-stream") if streams else HEAD

    def say(line: str, connection: socket.socket) -> None:
        if "completions" not in line:
            connection.sendall(HEAD + b"content-length: 2\r\n\r\n{}")
            return
        connection.sendall(head + b"content-length: %d\r\n\r\n" % (2 * held))
        connection.sendall(b"\0" * held)
        if arrived.wait(20):
            connection.sendall(b"\1" * held)

    with answering(say) as place, routed(f"http://{place}") as client:
        body = {"model": "m", "prompt": "The tide", "stream": streams}
        with client.stream("POST", "/v1/completions", json=body) as answer:
            came = 0
            for piece in answer.iter_raw():
                arrived.set()
                came += len(piece)
        assert answer.status_code == 200
        assert came == 2 * held


def test_a_word_on_health_that_never_ends_is_no_answer() -> None:
    def endless(_: str, connection: socket.socket) -> None:
        connection.sendall(HEAD + b"\r\n")
        while True:
            connection.sendall(b"\0" * 65536)

    def dripping(_: str, connection: socket.socket) -> None:
        connection.sendall(HEAD + b"\r\n")
        while True:
            connection.sendall(b"\0")
            threading.Event().wait(0.02)

    async def ask(place: str, timeout_s: float) -> httpx.Response:
        async with httpx.AsyncClient(trust_env=False) as client:
            return await fetch(client, f"http://{place}/health", {}, timeout_s)

    with answering(endless) as place, pytest.raises(httpx.ReadError, match="more than 4194304"):
        asyncio.run(ask(place, 20))
    with answering(dripping) as place, pytest.raises(httpx.ReadTimeout, match=r"within 0\.3 s"):
        asyncio.run(ask(place, 0.3))


def test_a_server_that_lists_models_without_an_end_is_asked_for_none_that_others_list() -> None:
    """The other's refusal of a prompt reaches the client as it is, status and words."""

    def plain(line: str, connection: socket.socket) -> None:
        body, status = b'{"data": [{"id": "m"}]}', b"200 OK"
        if "completions" in line:
            body, status = b'{"error": {"message": "no"}}', b"400 Bad Request"
        connection.sendall(
            b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n" % (status, len(body)) + body
        )

    def endless(line: str, connection: socket.socket) -> None:
        connection.sendall(HEAD + (b"content-length: 0\r\n\r\n" if "health" in line else b"\r\n"))
        while "health" not in line:
            connection.sendall(b"[" * 65536)

    with (
        answering(plain) as one,
        answering(endless) as other,
        routed(f"http://{other}", f"http://{one}", rule="round-robin") as client,
    ):
        assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["m"]

        def known() -> bool:
            told = client.get("/v1/router").json()["servers"]
            return [each["models"] for each in told] == [[], ["m"]]

        assert until(known)
        for _ in range(2):  # one of them is the other's turn
            refused = client.post("/v1/completions", json={"model": "m", "prompt": "The tide"})
            assert (refused.status_code, refused.json()) == (400, {"error": {"message": "no"}})


def test_a_name_has_a_digest_where_all_its_servers_tell_the_same() -> None:
    """Three servers list the same five names, each with its own letter of the digests, or none (-)."""
    names = ["xxx", "xyy", "yxy", "xx-", "-xx"]

    def say(server: int, _: str, connection: socket.socket) -> None:
        cards = [{"id": name, "weights": name[server]} for name in names]
        told = [{k: v for k, v in card.items() if v != "-"} for card in cards]
        body = json.dumps({"data": told}).encode()
        connection.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)

    with contextlib.ExitStack() as opened:
        places = [opened.enter_context(answering(partial(say, server))) for server in range(3)]
        client = opened.enter_context(routed(*(f"http://{place}" for place in places)))
        cards = client.get("/v1/models").json()["data"]
    assert {card["id"]: card.get("weights") for card in cards} == dict.fromkeys(names) | {
        "xxx": "x"
    }


def test_a_server_that_is_down_still_counts_for_the_digest_of_a_name() -> None:
    """It may come back and answer. Its own word ends it: it tells the same, or lists the name no more."""
    cards: dict[str, object] = {"id": "m", "weights": "y"}
    status = b"200 OK"

    def other(_: str, connection: socket.socket) -> None:
        body = json.dumps({"data": [cards]}).encode()
        connection.sendall(
            b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n" % (status, len(body)) + body
        )

    def one(_: str, connection: socket.socket) -> None:
        connection.sendall(
            HEAD + b"content-length: 38\r\n\r\n" + b'{"data": [{"id":"m", "weights": "x"}]}'
        )

    with (
        answering(one) as here,
        answering(other) as there,
        routed(f"http://{here}", f"http://{there}") as client,
    ):

        def digest() -> object:
            listed = client.get("/v1/models").json()["data"]
            return next(card.get("weights") for card in listed if card["id"] == "m")

        def is_up() -> bool:
            return bool(client.get("/v1/router").json()["servers"][1]["up"])

        assert digest() is None
        status = b"503 Service Unavailable"
        assert until(lambda: not is_up())
        assert digest() is None
        status, cards = b"200 OK", {"id": "m", "weights": "x"}
        assert until(is_up)
        assert digest() == "x"
        cards["weights"] = "y"
        assert digest() is None
        cards = {"id": "n", "weights": "y"}
        assert digest() == "x"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/completions", b"400 Bad Request"),
        ("/v1/completions", b"429 Too Many Requests"),
        ("/v1/completions", b"503 Service Unavailable"),
        ("/tokenize", b"200 OK"),
    ],
)
def test_what_computes_no_prompt_teaches_nothing_of_it(path: str, status: bytes) -> None:
    """Of 32 KiB, 64 chunks, the model says 1.6 s. An answer at the end, which comes sooner, is learned
    from."""

    def say(line: str, connection: socket.socket) -> None:
        said = status if path in line else b"200 OK"
        connection.sendall(b"HTTP/1.1 %s\r\ncontent-length: 2\r\n\r\n{}" % said)

    with answering(say) as place, routed(f"http://{place}") as client:

        def told() -> dict[str, float]:
            found: dict[str, float] = client.get("/v1/router").json()["servers"][0]
            return found

        body = {"model": "m", "prompt": "The tide is out." * 2048}
        assert client.post(path, json=body).status_code == int(status[:3])
        assert told()["slowdown"] == pytest.approx(1, abs=0.05)
        assert (told()["stored_chunks"], told()["wait_s"]) == (0, 0)
        other = body | {"cache_salt": "other"}
        assert client.post("/v1/embeddings", json=other).status_code == 200
        assert told()["slowdown"] < 0.9
        assert told()["stored_chunks"] == 64


def test_a_server_that_fails_is_asked_in_its_own_turn_only() -> None:
    asked = []

    def say(status: bytes, line: str, connection: socket.socket) -> None:
        if "completions" in line:
            asked.append(status)
        else:
            status = b"200 OK"
        connection.sendall(b"HTTP/1.1 %s\r\ncontent-length: 2\r\n\r\n{}" % status)

    with (
        answering(partial(say, b"503 Service Unavailable")) as one,
        answering(partial(say, b"200 OK")) as other,
        routed(f"http://{one}", f"http://{other}", rule="round-robin") as client,
    ):
        for _ in range(4):
            answer = client.post("/v1/completions", json={"model": "m", "prompt": "The tide"})
            assert answer.status_code == 200
    assert asked.count(b"503 Service Unavailable") == 2
    assert asked.count(b"200 OK") == 4
