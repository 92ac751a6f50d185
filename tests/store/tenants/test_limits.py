"""What operators decide about tenants: quotas, priorities and pins, by whatever door."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

import kdn
from kdn.api.store import open_configured_store
from kdn.clock import ManualClock
from kdn.config import Config, StoreConfig
from kdn.errors import BadInput, NoSpace
from kdn.serve import (
    Limits,
    ServeSettings,
    create_app,
    listen,
    make_server,
    read_grants,
    served,
    url_of,
)
from kdn.serve.store.app import mount_store
from kdn.serve.store.texts import TextStore
from kdn.store import Block, Match, Quotas, Rules, Store, encode_block, open_store
from kdn.store.tenants.tenancy import TenantLimits, TenantsLimits
from tests.serve.running import wait_for
from tests.serve.scripted import ScriptedService
from tests.store.helpers import block_id, make_block
from tests.store.remotes import node_server, running


def block(number: int, salt: str = "") -> Block:
    """60 KiB or so, different for every number."""
    return make_block(block_id([number] * 256, salt=salt))


def test_a_decision_holds_for_every_process_within_a_second(tmp_path: Path) -> None:
    clock = ManualClock()
    mine, theirs = TenantsLimits(tmp_path, clock), TenantsLimits(tmp_path, clock)
    assert theirs.of("bob") == TenantLimits()
    mine.decide("bob", TenantLimits(quota_bytes=5))
    mine.decide("bob", TenantLimits(priority=-1))
    assert theirs.of("bob") == TenantLimits()
    clock.advance(1.0)
    assert theirs.of("bob") == TenantLimits(5, -1)
    assert theirs.forget("bob")
    assert not mine.forget("bob")
    with pytest.raises(BadInput, match="quota of -1"):
        mine.decide("bob", TenantLimits(quota_bytes=-1))
    with pytest.raises(BadInput, match="a limit in bytes or a priority"):
        mine.decide("bob", TenantLimits())
    assert mine.all() == {}


def test_a_decided_quota_stands_before_the_setting(tmp_path: Path) -> None:
    with open_store(tmp_path, disk_bytes=10**9, quotas=Quotas(10**9)) as store:
        store.put(block(1, "bob"))
        store.tenancy.limits.decide("bob", TenantLimits(quota_bytes=0))
        with pytest.raises(NoSpace, match="quota of 0 bytes"):
            store.put(block(2, "bob"))
        store.put(block(2, "alice"))
        assert len(store.index.entries()) == 2


def test_a_lower_priority_goes_first_whatever_its_age(tmp_path: Path) -> None:
    """Room for two on the disk: the older of equals goes, unless the younger counts for less."""
    for priorities, left in [({}, {"batch", "new"}), ({"batch": -1}, {"vip", "new"})]:
        size = _size(tmp_path / f"size{len(priorities)}")
        settings = StoreConfig(disk_bytes=2 * size + size // 2, priorities=priorities)
        with open_configured_store(Config(home=tmp_path / str(left), store=settings)) as store:
            for salt in ("vip", "batch", "new"):
                store.put(block(1, salt))
            kept = {
                e.family.salt for e in store.index.entries() if "disk" in store.tiers.where(e.key)
            }
            assert kept == left


def _size(folder: Path) -> int:
    with open_store(folder, disk_bytes=10**9) as store:
        store.put(block(1, "batch"))
        return store.tiers.named("disk").usage().size_bytes


def test_a_pinned_block_outlives_its_age_limit_until_the_pin_ends(tmp_path: Path) -> None:
    clock = ManualClock()
    with open_store(tmp_path, disk_bytes=10**9, rules=Rules(ttl_s=10.0), clock=clock) as store:
        store.put(block(1))
        store.put(block(2))
        store.tenancy.persistent_pins.pin([block(1).id.key], clock.wall() + 30.0)
        clock.advance(20.0)
        store.index.refresh()
        assert [e.key for e in store.index.entries()] == [block(1).id.key]
        clock.advance(20.0)
        store.index.refresh()
        assert store.index.entries() == ()


def test_the_admin_decides_over_http_and_nobody_else(tmp_path: Path) -> None:
    with (
        open_store(tmp_path, disk_bytes=10**9) as store,
        node_server(store, admin_key="root", tenant_keys=("bob=B",)) as url,
    ):
        bodies = [{"salt": "bob", "limit_bytes": 70_000}, {"salt": "bob", "priority": 3}]
        for body in bodies:
            for token, status in (("B", 403), ("root", 200)):
                headers = {"authorization": f"Bearer {token}"}
                answer = httpx.post(f"{url}/v1/store/quota", json=body, headers=headers, timeout=60)
                assert answer.status_code == status
        told = answer.json()["bob"]
        assert (told["limit_bytes"], told["priority"]) == (70_000, 3)
        both = {"salt": "bob", "forget": True, "limit_bytes": 80_000}
        answer = httpx.post(f"{url}/v1/store/quota", json=both, headers=headers, timeout=60)
        assert answer.status_code == 400
        held = httpx.get(f"{url}/v1/store/quota", headers=headers, timeout=60).json()
        assert held["bob"] == told
        body = {"salt": "bob", "forget": True}
        answer = httpx.post(f"{url}/v1/store/quota", json=body, headers=headers, timeout=60)
        assert "bob" not in answer.json()


def test_a_text_is_put_and_found_over_http(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    grants = read_grants("root", ("bob=B",))
    settings = ServeSettings(port=0, grace_s=1)
    with ExitStack() as stack:
        one = stack.enter_context(kdn.open(tiny_model(), config=Config(home=tmp_path)))
        app = create_app(served(one), settings, version="1", own_keys=grants)
        mount_store(app, one.store, grants, TextStore(one, served(one)))
        door = stack.enter_context(listen(settings))
        stack.enter_context(running(make_server(app, settings, log_level="warning"), door))
        base_url = url_of(door, "http") + "/v1/store"
        http = stack.enter_context(httpx.Client(base_url=base_url, timeout=60))
        http.headers["authorization"] = "Bearer B"
        document = {"text": "The lamp is lit at dusk. " * 4, "salt": "bob"}
        assert http.post("/lookup-text", json=document).json()["hit_tokens"] == 0
        put = http.post("/put", json=document)
        assert put.json()["salt"] == "bob"
        assert put.json()["tokens"] > 90
        found = http.post("/lookup-text", json=document).json()
        assert found["hit_tokens"] == found["tokens"] >= put.json()["tokens"]
        for salt in ("alice", "public"):
            assert http.post("/put", json={**document, "salt": salt}).status_code == 403
        http.headers["authorization"] = "Bearer root"
        assert http.post("/put", json={**document, "salt": "public"}).status_code == 200
        assert http.post("/put", json={"words": "?"}).status_code == 400
        for path in ("/put", "/lookup-text"):
            far_too_long = http.post(path, json={"text": "a" * 3_000_000})
            assert far_too_long.json()["error"]["code"] == "context_length_exceeded"
        many = b'{"fingerprint": "x", "tokens": [' + b"1," * (1 << 21) + b"1]}"
        assert http.post("/lookup", content=many).status_code == 413


def test_a_text_that_the_disk_refuses_is_not_acknowledged(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Memory holds it, and would lose it: 507 with the reason, where it was 200."""
    grants, settings = read_grants("root", ()), ServeSettings(port=0, grace_s=1)
    with ExitStack() as stack:
        config = Config(home=tmp_path, store=StoreConfig(disk_bytes=1000))
        one = stack.enter_context(kdn.open(tiny_model(), config=config))
        app = create_app(served(one), settings, version="1", own_keys=grants)
        mount_store(app, one.store, grants, TextStore(one, served(one)))
        door = stack.enter_context(listen(settings))
        stack.enter_context(running(make_server(app, settings, log_level="warning"), door))
        base_url = url_of(door, "http") + "/v1/store"
        http = stack.enter_context(httpx.Client(base_url=base_url, timeout=60))
        http.headers["authorization"] = "Bearer root"
        answer = http.post("/put", json={"text": "The lamp is lit at dusk. " * 4})
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "no_space")


@dataclass
class Waiting:
    """A model that computes nothing before it is let go, and finds the disk full then."""

    go_on: threading.Event = field(default_factory=threading.Event)

    def prefill(self, text: str, name: str | None = None, salt: str = "") -> int:
        self.go_on.wait()
        raise NoSpace(f"no room for {text} ({name}, {salt!r})")

    def lookup(self, text: str, name: str | None = None, salt: str = "") -> tuple[Match, int]:
        raise NotImplementedError(text, name, salt)


@contextmanager
def two_tenants(store: Store, limits: Limits, model: Waiting) -> Iterator[httpx.Client]:
    """A server without API keys, whose store a and b have a key to."""
    grants, settings = read_grants(None, ("a=A", "b=B")), ServeSettings(port=0, limits=limits)
    with ExitStack() as stack:
        served_model = stack.enter_context(closing(ScriptedService())).served()
        app = create_app(served_model, settings, version="1", own_keys=grants)
        mount_store(app, store, grants, TextStore(model, served_model))
        door = stack.enter_context(listen(settings))
        stack.enter_context(running(make_server(app, settings, log_level="warning"), door))
        stack.callback(model.go_on.set)
        yield stack.enter_context(httpx.Client(base_url=url_of(door), timeout=60))


def test_what_one_tenant_uploads_is_not_counted_as_anothers(tmp_path: Path) -> None:
    """The upload that a began says 200,000 bytes, all that one caller may hold."""
    limits = Limits(caller_bytes=200_000, all_bytes=400_000)
    with (
        open_store(tmp_path, disk_bytes=10**9) as store,
        two_tenants(store, limits, Waiting()) as http,
        socket.create_connection((http.base_url.host, http.base_url.port or 0)) as slow,
    ):

        def put(salt: str) -> int:
            own = block(1, salt)
            return http.put(
                f"/v1/store/blocks/{own.id.key}",
                content=bytes(encode_block(own).data),
                headers={"authorization": f"Bearer {salt.upper()}"},
            ).status_code

        head = f"PUT /v1/store/blocks/{'0' * 64} HTTP/1.1\r\nhost: localhost\r\n"
        slow.sendall(f"{head}authorization: Bearer A\r\ncontent-length: 200000\r\n\r\n".encode())
        wait_for(lambda: put("a") == 429)
        assert put("b") == 204
        assert put("nobody") == 401


def test_a_text_that_is_put_counts_until_it_is_stored(tmp_path: Path) -> None:
    """One text a caller: the second of a is refused, and that of b computed."""
    with (
        open_store(tmp_path, disk_bytes=10**9) as store,
        two_tenants(store, Limits(caller_requests=1), model := Waiting()) as http,
        ThreadPoolExecutor() as clients,
    ):

        def put(salt: str) -> int:
            headers = {"authorization": f"Bearer {salt.upper()}"}
            body = {"text": "A lamp.", "salt": salt}
            return http.post("/v1/store/put", json=body, headers=headers).status_code

        both = [clients.submit(put, "a") for _ in range(2)]
        wait_for(lambda: any(one.done() for one in both))
        of_b = clients.submit(put, "b")
        assert [one.result() for one in both if one.done()] == [429]
        model.go_on.set()
        assert sorted(one.result() for one in both) == [429, 507]
        assert of_b.result() == 507
