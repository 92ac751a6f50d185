"""Keys and their salts, pages of other sites, and sizes: all before a route sees the request."""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
import statistics
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from starlette.types import Message, Receive, Scope, Send

from kdn.clock import ManualClock
from kdn.errors import BadConfig
from kdn.serve import Limits, ServeSettings
from kdn.serve.auth import LOCAL, ApiKey, Auth, Caller, find_caller, own_scope, read_keys
from kdn.serve.errors import Refused
from kdn.serve.limits import Backpressure, Held, Shutdown
from tests.serve.running import Running, running
from tests.serve.scripted import ScriptedService

ASK = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def service() -> Iterator[ScriptedService]:
    service = ScriptedService()
    yield service
    service.close()


@pytest.fixture(scope="module")
def keyless(service: ScriptedService) -> Iterator[Running]:
    with running(service) as server:
        yield server


@pytest.fixture(scope="module")
def keyed(service: ScriptedService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(
        "# one key a line\n\n"
        f"{hashlib.sha256(b'HASHED').hexdigest()} carol public   # writes for all\n"
    )
    settings = ServeSettings(
        port=0, api_keys=("ONE", "TWO"), salted_keys=("alice+team=ALICE", "*=PEER"), key_file=file
    )
    with running(service, settings) as server:
        yield server


def salt_of(server: Running, service: ScriptedService, key: str, named: str | None) -> Any:
    """The salt that the engine got, or the status of the refusal."""
    body = {"messages": ASK, "max_tokens": 1, **({} if named is None else {"cache_salt": named})}
    answer = server.http.post(
        "/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}
    )
    if answer.status_code != 200:
        return answer.status_code
    return service.requests[-1].salt


def test_prometheus_scrapes_with_the_key_as_the_page_says(keyless: Running, keyed: Running) -> None:
    """`type` is Bearer where nothing is said; the file holds the key alone."""
    page = (Path(__file__).parents[2] / "docs" / "observability.md").read_text("utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (job,) = yaml.safe_load(block)["scrape_configs"]
    assert set(job["authorization"]) == {"credentials_file"}
    path = job.get("metrics_path", "/metrics")
    assert httpx.get(keyless.url + path).status_code == 200
    assert httpx.get(keyed.url + path).status_code == 401
    key = {"authorization": "Bearer ONE"}
    assert httpx.get(keyed.url + path, headers=key).status_code == 200


def test_a_salt_that_is_nobodys_is_kept_apart_by_key(
    keyed: Running, service: ScriptedService
) -> None:
    one, two = (salt_of(keyed, service, key, "mine") for key in ("ONE", "TWO"))
    assert one != two
    assert one.startswith("key-")
    assert one.endswith("/mine")
    assert salt_of(keyed, service, "ONE", "mine") == one
    # a granted salt cannot be reached by naming it, nor a derived one by spelling it
    assert salt_of(keyed, service, "ONE", "alice") != "alice"
    assert salt_of(keyed, service, "TWO", one) != one


def test_granted_salts_are_taken_as_named_and_the_first_is_the_default(
    keyed: Running, service: ScriptedService
) -> None:
    assert salt_of(keyed, service, "ALICE", "alice") == "alice"
    assert salt_of(keyed, service, "ALICE", "team") == "team"
    assert salt_of(keyed, service, "ALICE", None) == "alice"
    assert salt_of(keyed, service, "HASHED", None) == "carol"
    assert salt_of(keyed, service, "PEER", "anybody") == "anybody"
    assert salt_of(keyed, service, "PEER", None) == ""
    assert salt_of(keyed, service, "ONE", None) == ""


def test_public_needs_a_grant_everywhere(
    keyed: Running, keyless: Running, service: ScriptedService
) -> None:
    assert salt_of(keyed, service, "HASHED", "public") == "public"
    for key in ("ONE", "ALICE", "PEER"):
        assert salt_of(keyed, service, key, "public") == 403
    assert salt_of(keyless, service, "any", "public") == 403
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/score", {"text_1": "a", "text_2": "b"}),
        ("/v1/classify", {"input": "a", "labels": ["b", "c"]}),
        ("/v1/rerank", {"query": "a", "documents": ["b"]}),
    ]
    for path, body in bodies:
        answer = keyless.http.post(path, json={**body, "cache_salt": "public"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (403, "cache_salt"), path


def test_without_keys_salts_are_taken_as_they_are(
    keyless: Running, service: ScriptedService
) -> None:
    assert salt_of(keyless, service, "any", "tenant") == "tenant"
    assert salt_of(keyless, service, "any", "s" * 513) == 400


@pytest.mark.parametrize("key", ["WRONG", "one", "ONE2", "\u00e9", "*"])
def test_a_wrong_key_is_nobody(keyed: Running, service: ScriptedService, key: str) -> None:
    headers = [(b"authorization", f"Bearer {key}".encode("latin-1"))]
    answer = keyed.http.get("/v1/models", headers=headers)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


def test_keys_that_cannot_be_read_are_refused_with_their_place(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    for text, why in [
        ("secret alice\n", "line 1"),
        ("# nothing\n", "holds no key"),
        ("\n" + "a" * 63 + "\n", "line 2"),
    ]:
        file.write_text(text)
        with pytest.raises(BadConfig, match=why):
            read_keys(ServeSettings(key_file=file))
    with pytest.raises(BadConfig, match="cannot be read"):
        read_keys(ServeSettings(key_file=tmp_path / "none"))
    for given in ("alice", "=K", "alice=", "a++b=K"):
        with pytest.raises(BadConfig, match="SALT=KEY"):
            read_keys(ServeSettings(salted_keys=(given,)))


def test_names_of_callers_reveal_no_key() -> None:
    key = ApiKey.of("a long secret")
    assert "secret" not in repr(key)
    assert key.caller.name == f"key-{hashlib.sha256(b'a long secret').hexdigest()[:16]}"
    assert LOCAL.salt("") == ""
    with pytest.raises(Refused, match="public"):
        Caller("key-1", ("*",)).salt("public")


@pytest.mark.alone
def test_the_time_of_a_refusal_does_not_tell_how_near_a_key_came() -> None:
    """A thousand wrong keys that share all but the last character, and none; medians of batches."""
    key = "k" * 64
    keys = tuple(ApiKey.of(one) for one in (key, "x" * 64, "y" * 64))

    def batch_s(given: str) -> float:
        begun = time.perf_counter()
        for _ in range(200):
            assert find_caller(f"Bearer {given}", keys) is None
        return time.perf_counter() - begun

    near, far = [], []
    for _ in range(40):  # interleaved, so that a busy machine is busy for both
        near.append(batch_s(key[:-1] + "j"))
        far.append(batch_s("z" * 64))
    spread = statistics.quantiles(near + far, n=4)
    gap = abs(statistics.median(near) - statistics.median(far))
    assert gap <= max(spread[2] - spread[0], 0.2 * statistics.median(far))


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.evil.example", "127.0.0.1.nip.io", "[", "[::1", "a@b", "[::ffff:1]", "1"],
)
def test_a_host_of_another_name_is_refused(keyless: Running, host: str) -> None:
    answer = keyless.http.get("/v1/models", headers={"host": host})
    assert answer.status_code == 403


@pytest.mark.parametrize("host", ["localhost", "localhost:81", "127.0.0.2:8000", "[::1]:9"])
def test_a_host_of_this_machine_is_answered(keyless: Running, host: str) -> None:
    assert keyless.http.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.evil.example"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded; charset=utf-8"}, 415),
        ({"content-type": "multipart/form-data; boundary=x"}, 415),
        ({"origin": "http://localhost:3000"}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({}, 200),
    ],
)
def test_a_page_of_another_site_cannot_send(
    keyless: Running, headers: dict[str, str], status: int
) -> None:
    body = b'{"prompt": "x", "max_tokens": 1}'
    given = {"content-type": "application/json", **headers}
    answer = keyless.http.post("/v1/completions", content=body, headers=given)
    assert answer.status_code == status
    assert status == 200 or set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_keyed_server_takes_pages_of_its_own_name_only(keyed: Running) -> None:
    for origin, status in [("https://chat.example", 200), ("https://evil.example", 403)]:
        answer = keyed.http.post(
            "/v1/completions",
            json={"prompt": "x", "max_tokens": 1},
            headers={"host": "chat.example", "origin": origin, "authorization": "Bearer ONE"},
        )
        assert answer.status_code == status


def test_headers_are_bounded_and_their_numbers_too(keyless: Running) -> None:
    long = keyless.http.get("/v1/models", headers={"x-padding": "p" * (1 << 17)})
    assert long.status_code == 431
    host, port = keyless.url.removeprefix("http://").split(":")
    for length in ("9" * 5000, "-1", "1e3"):
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            raw.sendall(
                f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: "
                f"application/json\r\ncontent-length: {length}\r\n\r\n{{}}".encode()
            )
            status = int(raw.recv(4096).split()[1])
        assert status in (400, 413), length


def test_a_body_of_two_lengths_is_refused_before_it_is_read() -> None:
    """Its chunks go beyond both the length that it told, 2 bytes, and the bound, 1,000."""
    head = (
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    settings = ServeSettings(port=0, limits=Limits(body_bytes=1000))
    with closing(ScriptedService()) as service, running(service, settings) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            raw.sendall(head + b"400\r\n" + b" " * 1024 + b"\r\n")
            answer = raw.recv(4096)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in answer


def test_bytes_of_bodies_are_held_within_bounds_and_given_back() -> None:
    service = ScriptedService()
    limits = Limits(body_bytes=1000, caller_bytes=1500, all_bytes=1500)
    try:
        with running(service, ServeSettings(port=0, limits=limits)) as server:
            for _ in range(4):  # each holds 900 bytes, and gives them back
                body = {"prompt": "x" * 850, "max_tokens": 1}
                assert server.http.post("/v1/completions", json=body).status_code == 200
    finally:
        service.close()


def test_a_body_of_many_pieces_holds_no_more_than_its_bytes() -> None:
    """50,000 of one byte each: what was noted of each piece took 31 MB together."""
    given, left = Backpressure(Limits()), 50_000

    async def receive() -> Message:
        nonlocal left
        left -= 1
        return {"type": "http.request", "body": b"x", "more_body": left > 0}

    async def app(_scope: Scope, receive: Receive, _send: Send) -> None:
        while (await receive())["more_body"]:
            pass
        with pytest.raises(Refused, match="50000 bytes of bodies"):
            given.take(LOCAL.name, Held(size_bytes=256 << 20))

    async def unsent(_: Message) -> None:
        raise AssertionError("nothing is sent")

    auth = Auth(app, ServeSettings(), given, Shutdown(1, ManualClock()))
    scope = own_scope("/v1/completions", b"", LOCAL)
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope.update({"kdn.background": False, "headers": headers})
    tracemalloc.start()
    try:
        asyncio.run(auth(scope, receive, unsent))
        most_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most_bytes < 5_000_000
    given.take(LOCAL.name, Held(size_bytes=256 << 20))
    given.check()
