"""Any body, key, cursor and range that an admin's client may send a node: answered or refused in shape."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from typing import Annotated, Any

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kdn.store import Store, open_store
from kdn.store.tiers.remote.peer import PeerChanges
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


Count = Annotated[int, msgspec.Meta(ge=0)]
OneAtMost = Annotated[int, msgspec.Meta(ge=0, le=1)]


class Refusal(msgspec.Struct, forbid_unknown_fields=True):
    message: Annotated[str, msgspec.Meta(min_length=5, max_length=2000)]
    type: str
    param: str | None
    code: str | None


class Refused(msgspec.Struct, forbid_unknown_fields=True):
    error: Refusal


class Counted(msgspec.Struct, forbid_unknown_fields=True):
    blocks: OneAtMost


class Done(msgspec.Struct, forbid_unknown_fields=True):
    blocks: OneAtMost
    size_bytes: Count
    missing: Count


class Verified(msgspec.Struct, forbid_unknown_fields=True):
    blocks: OneAtMost
    size_bytes: Count
    corrupt: Annotated[list[str], msgspec.Meta(max_length=0)]


class Looked(msgspec.Struct, forbid_unknown_fields=True):
    tokens: Count
    hit_tokens: Annotated[int, msgspec.Meta(ge=0, le=0)]
    """Five tokens at most are asked for, and a block has 256."""
    hits: Annotated[list[str], msgspec.Meta(max_length=0)]


class Held(msgspec.Struct, forbid_unknown_fields=True):
    limit_bytes: Count | None
    priority: int | None
    held_bytes: dict[str, Count]


ANSWERS: dict[str, Any] = {
    "lookup": Looked,
    "quota": dict[str, Held],
    "verify": Verified,
    "pin": Counted,
    "unpin": Counted,
    **dict.fromkeys(("warm", "clear", "copy", "move", "compress", "import"), Done),
}
REFUSALS = {
    400: "invalid_request_error",
    404: "not_found_error",
    416: "invalid_request_error",
    507: "server_error",
}


def is_refused(answer: httpx.Response) -> bool:
    """Is it a refusal? Then in OpenAI's shape and one sentence, with the type of its status."""
    if answer.is_success:
        return False
    assert answer.headers["content-type"] == "application/json"
    error = msgspec.json.decode(answer.content, type=Refused).error
    assert error.type == REFUSALS[answer.status_code], error
    assert error.message.isprintable(), error
    return True


def is_right(path: str, answer: httpx.Response) -> None:
    """Refused as it should be, or answered as that path answers about a store of one block."""
    if is_refused(answer):
        return
    assert answer.status_code == 200
    if path == "export":
        with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
            assert {member.name for member in archive} <= {f"blocks/{BLOCK.id.key}.kdn"}
    else:
        msgspec.json.decode(answer.content, type=ANSWERS[path])


FAULT = {"message": "no such tier", "type": "invalid_request_error", "param": None, "code": None}


def said(status: int, shape: object) -> httpx.Response:
    """An answer as a server with a fault may give it."""
    return httpx.Response(status, json=shape)


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("pin", said(500, {"error": FAULT | {"type": "server_error"}})),
        ("pin", said(404, {"error": FAULT})),
        ("pin", said(400, {"error": FAULT | {"message": ""}})),
        ("pin", said(400, {"error": FAULT | {"message": "Traceback:\n  File"}})),
        ("pin", said(400, {"error": FAULT, "detail": "x"})),
        ("pin", httpx.Response(400, text="Bad Request")),
        ("pin", said(200, {"error": FAULT})),
        ("pin", said(200, {"blocks": 2})),
        ("pin", said(204, None)),
        ("copy", said(200, {"blocks": 1})),
        ("warm", said(200, {"blocks": -1, "size_bytes": 0, "missing": 0})),
        ("lookup", said(200, {"tokens": 5, "hit_tokens": 5, "hits": []})),
        ("quota", said(200, {"alice": {"limit_bytes": -1, "priority": 0, "held_bytes": {}}})),
        ("export", httpx.Response(200, content=b"no archive")),
    ],
)
def test_what_is_no_right_answer_is_seen(path: str, wrong: httpx.Response) -> None:
    with pytest.raises((AssertionError, KeyError, msgspec.MsgspecError, tarfile.TarError)):
        is_right(path, wrong)


@example(path="pin", body={"keys": ["\ud7fc"]})  # no character has this number
@example(path="pin", body={"keys": ["\ud83d"]})  # half of a pair
@example(path="export", body={"all": True})
@example(path="export", body={"keys": [BLOCK.id.key]})
@example(path="compress", body={"all": True, "codec": "int8"})
@example(path="copy", body={"all": True, "to": "memory"})
@example(path="move", body={"all": True, "source": "memory", "to": "disk"})
@example(path="pin", body={"all": True, "seconds": 5})
@example(path="unpin", body={"all": True})
@example(path="warm", body={"all": True})
@example(path="verify", body={})
@example(path="lookup", body={"fingerprint": MODEL, "tokens": [1, 2], "salt": "alice"})
@example(path="lookup", body={"fingerprint": MODEL, "tokens": [-1], "salt": "alice"})
@example(path="quota", body={"salt": "alice", "limit_bytes": 10**9})
@given(path=st.sampled_from(POSTS), body=SHAPED | st.dictionaries(st.sampled_from(KEYS), VALUES))
@FUZZ
def test_any_body(http: httpx.Client, path: str, body: dict[str, Any]) -> None:
    known = {name: one for name, one in body.items() if name in NEEDED.get(path, WHICH)}
    for sent in (body, known):
        content = json.dumps(sent).encode("utf-8", "surrogatepass")
        is_right(path, http.post(f"/{path}", content=content))


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
    answer = http.post(f"/{path}", content=body)
    is_right(path, answer)
    # A verification reads no body; a lookup takes any model's name, and ids of 32 bits.
    is_id = b"[-1]" not in body and b"[4294967296]" not in body
    fits = path == "verify" or (path == "lookup" and b"fingerprint" in body and is_id)
    assert is_refused(answer) == (not fits)


@pytest.mark.parametrize("since", ["9" * 5000, "-1", "x:y", "\ud83d", "1:" + "9" * 400, ":", "%00"])
def test_any_cursor(http: httpx.Client, since: str) -> None:
    given_since = since.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    answer = http.get("/blocks", params={"since": given_since})
    assert answer.status_code == 200
    told = msgspec.msgpack.decode(answer.content, type=PeerChanges)
    assert (told.whole, told.removed) == (True, [])
    assert [key for key, _ in told.added] in ([], [BLOCK.id.key])


@pytest.mark.parametrize("number", ["9" * 5000, "-1", "1e9", "x", "99", "9223372036854775808"])
def test_any_layers(http: httpx.Client, number: str) -> None:
    path = f"/blocks/{BLOCK.id.key}/layers"
    assert is_refused(http.get(path, params={"start": 0, "stop": number, "codec": "none"}))
    assert is_refused(http.get(path, params={"start": number, "stop": 1, "codec": "none"}))
    assert is_refused(http.get(path, params={"start": 0, "stop": 1, "codec": number}))


@pytest.mark.parametrize(
    "asked",
    ["bytes=" + "9" * 5000 + "-", "bytes=0-" + "9" * 5000, "bytes=-", "bytes=1-0", "x" * 999],
)
def test_any_range(http: httpx.Client, store: Store, asked: str) -> None:
    store.put(BLOCK)
    answer = http.get(f"/blocks/{BLOCK.id.key}", headers={"range": asked})
    assert is_refused(answer)
    assert answer.status_code == 416


@pytest.mark.parametrize("key", ["9" * 64, "%00", "..%2f..", "x" * 5000, "\u00e9" * 64])
def test_any_key(http: httpx.Client, key: str) -> None:
    for verb in ("GET", "PUT", "DELETE"):
        assert is_refused(http.request(verb, f"/blocks/{key}", content=b"x"))
