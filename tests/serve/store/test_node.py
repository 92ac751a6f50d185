"""A node as engines, operators and attackers see it: real sockets, real TLS."""

from __future__ import annotations

import asyncio
import datetime as dt
import io
import ipaddress
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import msgspec
import pytest
from fastapi.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from kdn.clock import ManualClock, SystemClock
from kdn.core import EXACT, PUBLIC_SALT
from kdn.errors import BadConfig, LostBlock, NoSpace, Unreachable
from kdn.serve import Limits, ServeSettings, create_node_app, read_grants
from kdn.serve.auth import LOCAL, Auth, caller_of, own_scope
from kdn.serve.limits import Backpressure, Shutdown
from kdn.serve.store.texts import TextStore, text_routes
from kdn.store import (
    DiskTier,
    KeyRing,
    MemoryTier,
    PeerRemote,
    Quotas,
    RemoteCallSettings,
    RemoteSettings,
    RemoteTier,
    Store,
    encode_block,
    open_store,
)
from kdn.store.index.index import Entry
from kdn.store.tiers.remote.entry_bytes import pack_note
from kdn.store.tiers.remote.peer import PeerChanges
from kdn.trace import NoTrace
from tests.serve.running import statuses_of_a_hang_up
from tests.store.helpers import MODEL, BadReads, block_id, make_block
from tests.store.remotes import node_server

PROMPT = tuple(range(300))
MINE = make_block(block_id(PROMPT[:256], salt="alice"))
THEIRS = make_block(block_id(PROMPT[:256], salt="bob"))
SHARED = make_block(block_id(PROMPT[:200], salt=PUBLIC_SALT))
KEYS = ("alice=a-key", "bob=b-key", "*=peer-key")


def note_of(block: object) -> bytes:
    return pack_note(Entry.of(block.id))  # type: ignore[attr-defined]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "kv", disk_bytes=10**9, quotas=Quotas(None, {"bob": 70_000})) as one:
        for block in (MINE, THEIRS, SHARED):
            one.put(block)
        yield one


@pytest.fixture
def url(store: Store) -> Iterator[str]:
    with node_server(store, admin_key="root", tenant_keys=KEYS) as address:
        yield address


def as_(url: str, token: str) -> httpx.Client:
    headers = {"authorization": f"Bearer {token}"}
    return httpx.Client(base_url=f"{url}/v1/store", headers=headers, timeout=60)


def test_a_stranger_gets_nothing(url: str) -> None:
    for token in ("nonsense", "a-key2", "Bearer a-key", "a-ke"):
        with as_(url, token) as http:
            for path in ("/blocks", f"/blocks/{SHARED.id.key}", "/stat", "/quota", "/pins"):
                assert http.get(path).status_code == 401
            for path in ("/clear", "/pin", "/export", "/lookup", "/import"):
                assert http.post(path, json={"all": True}).status_code == 401


def test_a_tenant_sees_its_own_blocks_and_the_public_ones(url: str) -> None:
    remote = PeerRemote(url, token="a-key")
    assert {one.key for one in remote.changes().added} == {MINE.id.key, SHARED.id.key}
    assert remote.head(MINE.id.key, 8) is not None
    assert remote.head(SHARED.id.key, 8) is not None
    assert remote.head(THEIRS.id.key, 8) is None
    remote.close()
    every = PeerRemote(url, token="peer-key")
    assert len(every.changes().added) == 3
    every.close()


def test_what_one_may_not_see_is_answered_as_what_is_not_there(url: str) -> None:
    absent = block_id([9, 9], salt="bob").key
    with as_(url, "a-key") as http:
        for verb in ("GET", "DELETE"):
            hidden = http.request(verb, f"/blocks/{THEIRS.id.key}")
            nothing = http.request(verb, f"/blocks/{absent}")
            assert (hidden.status_code, hidden.content) == (nothing.status_code, nothing.content)
            assert hidden.status_code == 404
        assert http.delete(f"/blocks/{SHARED.id.key}").status_code == 404, "public is read-only"
        probe = {"fingerprint": MODEL, "tokens": list(PROMPT), "salt": "bob"}
        assert http.post("/lookup", json=probe).status_code == 403
        assert list(http.get("/quota").json()) == ["alice"]


def test_news_of_what_left_do_not_tell_of_others(url: str, store: Store) -> None:
    """A tenant that guesses another's text could compute its key, and must not see it go."""
    remote = PeerRemote(url, token="a-key")
    remote.changes()
    store.drop(THEIRS.id.key)
    store.drop(MINE.id.key)
    changes = remote.changes()
    assert (changes.added, changes.removed, changes.whole) == ((), (MINE.id.key,), False)
    remote.close()


def test_cursors_do_not_count_the_blocks_of_others(url: str, store: Store) -> None:
    """Two cursors with 40 of carol's blocks between them were forty apart."""
    with as_(url, "a-key") as http:
        cursors = []
        for start in (0, 100):
            for number in range(start, start + 40):
                store.put(make_block(block_id([7, number], salt="carol")))
            answer = msgspec.msgpack.decode(http.get("/blocks").content, type=PeerChanges)
            again = msgspec.msgpack.decode(
                http.get("/blocks", params={"since": answer.cursor}).content, type=PeerChanges
            )
            assert again == PeerChanges(answer.cursor, whole=False, added=[], removed=[])
            cursors.append(answer.cursor)
        assert len(store.index.entries()) == 83
        assert all(re.fullmatch("[0-9a-f]{32}", one) for one in cursors), cursors
        assert cursors[0][:16] != cursors[1][:16], "no part of it goes on"


def test_a_tenant_cannot_write_for_another_or_for_all(url: str, store: Store) -> None:
    remote = PeerRemote(url, token="a-key")
    for salt in ("bob", PUBLIC_SALT, ""):
        block = make_block(block_id([1, 2, 3], salt=salt))
        with pytest.raises(NoSpace, match="403"):
            remote.write(block.id.key, note_of(block), encode_block(block).data)
    own = make_block(block_id([1, 2, 3], salt="alice"))
    remote.write(own.id.key, note_of(own), encode_block(own).data)
    assert store.index.get(own.id.key) is not None
    remote.close()


def test_a_tenant_without_quota_does_not_cost_the_others_the_node(tmp_path: Path) -> None:
    """Three refused writes opened the circuit: no engine's tenant found anything there."""
    bobs = [make_block(block_id([number], salt="bob")) for number in range(3)]
    calls = RemoteCallSettings(timeout_s=20)
    with (
        open_store(tmp_path / "kv", disk_bytes=10**9, quotas=Quotas(None, {"bob": 0})) as held,
        node_server(held, tenant_keys=KEYS) as address,
    ):
        held.put(MINE)
        remote = PeerRemote(address, token="peer-key", timeout_s=20)
        far = RemoteTier(remote, RemoteSettings(calls, poll_s=0), SystemClock(), NoTrace())
        with Store([MemoryTier(10**9, NoTrace())], far=[far]) as engine:
            for block in bobs:
                engine.put(block)
            assert engine.flush(60)
            assert engine.match(MODEL, EXACT, "alice", PROMPT).num_tokens == 256
            stat = engine.stat()
            assert (stat.dropped, stat.failed, stat.open_circuits) == (3, 0, ())


def test_a_block_larger_than_a_node_takes_is_refused_before_all_of_it_is_sent(
    tmp_path: Path,
) -> None:
    with open_store(tmp_path / "kv") as held, node_server(held, body_bytes=1 << 16) as address:
        remote = PeerRemote(address, timeout_s=20)
        with pytest.raises(NoSpace, match="413"):
            remote.write(MINE.id.key, b"", memoryview(bytes(32 << 20)))
        remote.close()


def test_the_page_says_what_a_tenants_key_opens(store: Store) -> None:
    """Every route of the store is asked with an empty body: the admin's alone answer 403."""
    grants = read_grants("root", ("alice=a-key",))
    settings, nothing = ServeSettings(port=0, api_keys=("root", "a-key")), cast("Any", None)
    app, alice = create_node_app(store, settings, grants), grants[1]
    texts, backpressure = TextStore(nothing, nothing), Backpressure(settings.limits)
    app.include_router(text_routes(texts, store, lambda _: alice, backpressure))
    with TestClient(app, headers={"authorization": "Bearer a-key"}) as client:
        paths = client.get("/openapi.json").json()["paths"]
        opened = {
            f"{method.upper()} {path}"
            for path, methods in paths.items()
            for method in methods
            if path.startswith("/v1/store/")
            and "/blocks" not in path
            and client.request(method, path, json={}).status_code != 403
        }
        assert client.get("/metrics").status_code == 404, "observability.md says so"
    page = (Path(__file__).parents[3] / "docs" / "store.md").read_text("utf-8")
    (said,) = re.findall(r"A tenant's key opens (.*?):", page, re.DOTALL)
    assert opened == set(re.findall(r"`([A-Z]+ /v1/store/[\w-]+)`", said))
    assert len(opened) == 4


def test_a_block_that_is_not_what_its_name_says_is_refused(url: str, store: Store) -> None:
    good = bytes(encode_block(MINE).data)
    other = block_id([4, 5], salt="alice").key
    flipped = bytearray(good)
    flipped[-1] ^= 4
    with as_(url, "peer-key") as http:
        for key, body in [
            (other, good),
            (MINE.id.key, bytes(flipped)),
            (MINE.id.key, good[:-1]),
            (MINE.id.key, b""),
            ("x" * 64, good),
            ("..%2f..%2fetc", good),
        ]:
            assert http.put(f"/blocks/{key}", content=body).status_code in {400, 404}
    assert len(store.index.entries()) == 3
    assert store.verify().corrupt == ()


def test_a_damaged_block_is_not_there_and_can_be_put_again(tmp_path: Path) -> None:
    """Any other answer would count as a failure of the node: three of them open its circuit."""
    pytest.importorskip("cryptography", reason="cryptography is not installed")
    key, whole = MINE.id.key, encode_block(MINE)
    ring = KeyRing(bytes(range(32)))
    with open_store(tmp_path / "kv", ring=ring) as held, node_server(held) as address:
        held.put(MINE)
        held.tiers.named("memory").drop(key)
        (file,) = (tmp_path / "kv/blocks").rglob("*.kdn")
        os.truncate(file, 5000)
        remote = PeerRemote(address, timeout_s=20)
        assert remote.head(key, 100) is None
        assert held.stat().corrupt == 1
        remote.write(key, note_of(MINE), whole.data)
        assert remote.head(key, 100) == (bytes(whole.data[:100]), whole.size_bytes)
        remote.close()


def test_a_block_that_cannot_be_read_now_is_found_again(tmp_path: Path) -> None:
    """It may be whole: where it passed for one that is not there, readers would forget it."""
    files = BadReads()
    disk = DiskTier(tmp_path / "kv", 10**9, ManualClock(), NoTrace(), files=files)
    with Store([disk]) as held, node_server(held) as address:
        held.put(MINE)
        remote = PeerRemote(address, timeout_s=20)
        files.fails = True
        with pytest.raises(LostBlock, match="cannot be read now"):
            remote.head(MINE.id.key, 100)
        files.fails = False
        assert remote.head(MINE.id.key, 100) is not None
        assert (held.stat().lost, held.stat().corrupt) == (1, 0)
        assert httpx.get(f"{address}/v1/store/stat", timeout=60).json()["lost"] == 1
        remote.close()


@pytest.mark.parametrize(
    ("asked", "status", "bytes_"),
    [
        ("bytes=0-0", 206, (0, 1)),
        ("bytes=4096-", 206, (4096, None)),
        ("bytes=4096-99999999", 206, (4096, None)),
        ("bytes=99999999-", 416, None),
        ("bytes=5-4", 416, None),
        ("bytes=-5", 416, None),
        ("lines=1-2", 416, None),
    ],
)
def test_ranges(url: str, asked: str, status: int, bytes_: tuple[int, int | None] | None) -> None:
    data = bytes(encode_block(MINE).data)
    with as_(url, "a-key") as http:
        answer = http.get(f"/blocks/{MINE.id.key}", headers={"range": asked})
        assert answer.status_code == status
        if bytes_ is not None:
            assert answer.content == data[slice(*bytes_)]
        assert http.get(f"/blocks/{MINE.id.key}").content == data


def test_only_the_admin_manages(url: str) -> None:
    calls = ["/warm", "/clear", "/copy", "/move", "/compress", "/pin", "/unpin", "/export"]
    with as_(url, "a-key") as http:
        for path in [*calls, "/import", "/verify"]:
            assert http.post(path, json={"all": True}).status_code == 403, path
        assert http.get("/stat").status_code == 403


def test_the_admin_does_everything_the_commands_do(url: str, store: Store) -> None:
    with as_(url, "root") as http:
        assert http.get("/stat").json()["blocks"] == 3
        assert http.post("/verify").json()["corrupt"] == []
        found = http.post("/lookup", json={"fingerprint": MODEL, "tokens": list(PROMPT)}).json()
        assert (found["hit_tokens"], found["hits"][0]["public"]) == (200, True)
        for tokens in ([-1], [*PROMPT, 2**32]):
            answer = http.post("/lookup", json={"fingerprint": MODEL, "tokens": tokens})
            assert answer.status_code == 400, answer.text
        assert http.get("/quota").json()["bob"]["limit_bytes"] == 70_000
        assert http.post("/pin", json={"salt": "alice", "seconds": 60}).json() == {"blocks": 1}
        assert list(http.get("/pins").json()) == [MINE.id.key]
        assert http.post("/pin", json={"salt": "alice", "seconds": -5}).status_code == 400
        assert http.post("/unpin", json={"salt": "alice"}).json() == {"blocks": 1}
        moved = http.post("/move", json={"salt": "bob", "to": "memory", "source": "disk"})
        assert (moved.status_code, store.tiers.where(THEIRS.id.key)) == (400, ("memory", "disk"))
        moved = http.post("/move", json={"salt": "bob", "to": "disk", "source": "memory"})
        assert moved.json()["blocks"] == 1
        assert store.tiers.where(THEIRS.id.key) == ("disk",)
        copied = http.post("/copy", json={"salt": "bob", "to": "memory"}).json()
        assert (copied["blocks"], store.tiers.where(THEIRS.id.key)) == (1, ("memory", "disk"))
        assert http.post("/warm", json={"all": True}).json()["blocks"] == 3
        assert http.post("/compress", json={"all": True, "codec": "none"}).json()["blocks"] == 3
        assert http.post("/compress", json={"all": True, "codec": "zip"}).status_code == 400
        bundle = http.post("/export", json={"all": True}).content
        assert http.post("/clear", json={"salt": "bob"}).json()["blocks"] == 1
        assert http.post("/export", json={"salt": "nobody"}).status_code == 400
        assert http.post("/clear", json={}).status_code == 400, "everything must be said"
        assert http.post("/clear", json={"tier": "cellar"}).status_code == 400
        assert http.post("/import", content=bundle).json()["blocks"] == 3
        assert http.post("/import", content=b"no bundle").status_code == 400
        assert len(store.index.entries()) == 3
    with tarfile.open(fileobj=io.BytesIO(bundle)) as archive:
        assert len(archive.getnames()) == 3


def test_an_archive_that_cannot_be_written_is_refused(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with as_(url, "root") as http:
        answer = http.post("/export", json={"all": True})
    assert answer.status_code == 500, answer.text
    assert "writing an archive in the folder for temporary files" in answer.text


def test_over_tls_with_a_certificate_of_our_own(tmp_path: Path) -> None:
    pem = self_signed(tmp_path / "node.pem")
    with open_store(None) as held, node_server(held, certificate=pem) as address:
        held.put(MINE)
        assert address.startswith("https://")
        remote = PeerRemote(address, authority=pem)
        assert [one.key for one in remote.changes().added] == [MINE.id.key]
        remote.close()
        with pytest.raises(Unreachable, match="certificate"):
            PeerRemote(address).changes()


def test_keys_that_make_no_sense_are_refused() -> None:
    for keys in (("alice",), ("=x",), ("alice=",), ("a=same", "b=same")):
        with pytest.raises(BadConfig):
            read_grants(None, keys)


def test_a_match_takes_from_the_public_and_goes_on_in_private(store: Store) -> None:
    rest = block_id(PROMPT[200:], PROMPT[:200], salt="carol")
    store.put(make_block(rest))
    match = store.match(MODEL, EXACT, "carol", PROMPT)
    assert [(hit.id.salt, hit.num_tokens) for hit in match.hits] == [
        (PUBLIC_SALT, 200),
        ("carol", 100),
    ]
    assert store.match(MODEL, EXACT, "dave", PROMPT).num_tokens == 200
    assert store.match(MODEL, EXACT, "alice", PROMPT).num_tokens == 256
    assert store.match(MODEL, EXACT, PUBLIC_SALT, PROMPT).num_tokens == 200


def self_signed(path: Path) -> Path:
    """A certificate for 127.0.0.1 and its key, in one file."""
    x509 = pytest.importorskip("cryptography.x509", reason="cryptography is not installed")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "node")])
    now = dt.datetime.now(dt.UTC)
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(here, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain) + made.public_bytes(pem)
    )
    return path


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", f"/v1/store/blocks/{MINE.id.key}"),
        ("POST", "/v1/store/lookup"),
        ("POST", "/v1/store/import"),
    ],
)
def test_a_client_that_hangs_up_in_its_upload_is_no_fault_of_the_server(
    store: Store, method: str, path: str
) -> None:
    """The request ends with nginx's 499 in the log of requests, and nothing is raised."""
    scope = {**own_scope(path, b"x" * 100, LOCAL), "method": method}
    app = create_node_app(store, ServeSettings(port=0), ())
    assert statuses_of_a_hang_up(app, scope) == [499, None]


def test_peers_that_act_for_every_tenant_are_bounded_apart() -> None:
    """Each by its key: what one holds is not held by another. A tenant is one caller."""
    grants = read_grants(None, ("*=one-key", "*=two-key", "alice=a-key"))
    names: list[str] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        names.append(caller_of(scope).name)

    async def nothing() -> Message:
        raise AssertionError("nothing is read")

    async def unsent(_: Message) -> None:
        raise AssertionError("nothing is sent")

    shutdown, limits = Shutdown(1, ManualClock()), Backpressure(Limits())
    auth = Auth(app, ServeSettings(), limits, shutdown, own_keys=grants)
    for key in ("one-key", "two-key", "a-key"):
        headers = [(b"host", b"localhost"), (b"authorization", b"Bearer " + key.encode())]
        scope = own_scope("/v1/store/stat", b"", LOCAL)
        scope.update({"kdn.background": False, "method": "GET", "headers": headers})
        asyncio.run(auth(scope, nothing, unsent))
    assert names[2] == "store-alice"
    assert len(set(names)) == 3
    assert "one-key" not in names[0]
