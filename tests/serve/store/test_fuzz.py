"""Any body, key, cursor and range that an admin's client may send a node: answered or refused in shape."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdn.store import Store, open_store
from tests.store.helpers import MODEL, block_id, make_block
from tests.store.remotes import node_server

BLOCK = make_block(block_id(range(256), salt="alice"))
POSTS = (
    *("lookup", "quota", "verify", "pin", "unpin", "warm", "clear", "copy", "move", "compress"),
    *("export", "import"),
)
NUMBERS = (
    st.integers()
    | st.sampled_from([2**31, 2**32, 2**63, 2**64, -(2**63) - 1, 10**40])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([1e308, -1e308, 5e-324])
)
TEXTS = st.text(max_size=12) | st.sampled_from(
    ["", "alice", "public", MODEL, BLOCK.id.key, "disk", "memory", "../..", "\x00", "a" * 5000]
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS, lambda one: st.lists(one, max_size=4), max_leaves=8
)
KEYS = (
    *("fingerprint", "tokens", "salt", "keys", "tier", "all", "limit_bytes", "priority"),
    *("forget", "seconds", "to", "source", "codec"),
)
SHAPED = st.fixed_dictionaries(
    {},
    optional={
        "fingerprint": TEXTS,
        "tokens": st.lists(st.integers(-3, 9) | NUMBERS, max_size=5),
        "salt": TEXTS,
        "keys": st.lists(TEXTS, max_size=3),
        "tier": TEXTS,
        "all": st.booleans(),
        "limit_bytes": NUMBERS,
        "priority": NUMBERS,
        "seconds": NUMBERS,
        "to": TEXTS,
        "source": TEXTS,
        "codec": TEXTS,
    },
)
NEEDED = {
    "lookup": ("fingerprint", "tokens", "salt"),
    "quota": ("salt", "limit_bytes", "priority"),
    "pin": ("keys", "salt", "fingerprint", "tier", "all", "seconds"),
    "copy": ("keys", "salt", "fingerprint", "tier", "all", "to", "source"),
    "move": ("keys", "salt", "fingerprint", "tier", "all", "to", "source"),
    "compress": ("keys", "salt", "fingerprint", "tier", "all", "codec"),
}
WHICH = ("keys", "salt", "fingerprint", "tier", "all")
FUZZ = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with open_store(tmp_path_factory.mktemp("kv") / "kv", disk_bytes=10**9) as one:
        one.put(BLOCK)
        yield one
        one.check()


@pytest.fixture(scope="module")
def http(store: Store) -> Iterator[httpx.Client]:
    with node_server(store, admin_key="root") as url:
        headers = {"authorization": "Bearer root"}
        with httpx.Client(base_url=f"{url}/v1/store", headers=headers, timeout=60) as client:
            yield client


def in_shape(answer: httpx.Response) -> None:
    assert answer.status_code < 500 or answer.status_code == 507, answer.text
    if answer.status_code >= 400:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@given(path=st.sampled_from(POSTS), body=SHAPED | st.dictionaries(st.sampled_from(KEYS), VALUES))
@FUZZ
def test_any_body(http: httpx.Client, path: str, body: dict[str, Any]) -> None:
    known = {name: one for name, one in body.items() if name in NEEDED.get(path, WHICH)}
    for sent in (body, known):
        content = json.dumps(sent).encode("utf-8", "surrogatepass")
        in_shape(http.post(f"/{path}", content=content))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b'"',
        b"\xff",
        b"[" * 100_000,
        b'{"salt": "\\ud800", "fingerprint": "x", "tokens": []}',
        b'{"tokens": [' + b"9" * 5000 + b"]}",
        b'{"fingerprint": "x", "tokens": [-1]}',
        b'{"fingerprint": "x", "tokens": [4294967296]}',
        b'{"fingerprint": "\\ud800", "tokens": [1]}',
    ],
)
@pytest.mark.parametrize("path", POSTS)
def test_bodies_that_are_none(http: httpx.Client, path: str, body: bytes) -> None:
    in_shape(http.post(f"/{path}", content=body))


@pytest.mark.parametrize("since", ["9" * 5000, "-1", "x:y", "\ud83d", "1:" + "9" * 400, ":", "%00"])
def test_any_cursor(http: httpx.Client, since: str) -> None:
    given_since = since.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    in_shape(http.get("/blocks", params={"since": given_since}))


@pytest.mark.parametrize("number", ["9" * 5000, "-1", "1e9", "x", "99", "9223372036854775808"])
def test_any_layers(http: httpx.Client, number: str) -> None:
    path = f"/blocks/{BLOCK.id.key}/layers"
    in_shape(http.get(path, params={"start": 0, "stop": number, "codec": "none"}))
    in_shape(http.get(path, params={"start": number, "stop": 1, "codec": "none"}))
    in_shape(http.get(path, params={"start": 0, "stop": 1, "codec": number}))


@pytest.mark.parametrize(
    "asked",
    ["bytes=" + "9" * 5000 + "-", "bytes=0-" + "9" * 5000, "bytes=-", "bytes=1-0", "x" * 999],
)
def test_any_range(http: httpx.Client, store: Store, asked: str) -> None:
    store.put(BLOCK)
    answer = http.get(f"/blocks/{BLOCK.id.key}", headers={"range": asked})
    in_shape(answer)
    assert answer.status_code == 416


@pytest.mark.parametrize("key", ["9" * 64, "%00", "..%2f..", "x" * 5000, "\u00e9" * 64])
def test_any_key(http: httpx.Client, key: str) -> None:
    for verb in ("GET", "PUT", "DELETE"):
        in_shape(http.request(verb, f"/blocks/{key}", content=b"x"))
