"""kdn store and kdn node as their users run them."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from kdn.api.store import open_configured_store
from kdn.config import Config, StoreConfig
from kdn.core import EXACT
from kdn.store import open_store
from tests.cli.program import finish, kdn, start
from tests.store.helpers import MODEL, block_id, make_block
from tests.store.remotes import node_server, redis_server

PROMPT = tuple(range(300))
FIRST = make_block(block_id(PROMPT[:256]))
SECOND = make_block(block_id(PROMPT[256:], PROMPT[:256], salt="bob"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    with open_store(tmp_path / "home" / "store", disk_bytes=10**9) as store:
        store.put(FIRST)
        store.put(SECOND)
    return tmp_path / "home"


def test_an_export_of_nothing_leaves_the_file_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "blocks.tar").write_text("of another day", "utf-8")
    refused = kdn(tmp_path / "empty", "store", "export", tmp_path / "blocks.tar")
    assert (refused.code, refused.out) == (2, "")
    assert "there are no such blocks: nothing is exported" in refused.err
    assert (tmp_path / "blocks.tar").read_text("utf-8") == "of another day"


def test_a_bundle_carries_blocks_to_another_home(home: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "blocks.tar"
    assert kdn(home, "store", "export", bundle, "--json").json["blocks"] == 2
    other = tmp_path / "other"
    assert kdn(other, "store", "import", bundle, "--salt", "bob", "--json").json["blocks"] == 1
    assert kdn(other, "store", "import", bundle, "--json").json["blocks"] == 2
    assert (
        kdn(other, "store", "verify", "--json").json == kdn(home, "store", "verify", "--json").json
    )
    damaged = bytearray(bundle.read_bytes())
    damaged[60_000] ^= 1
    bundle.write_bytes(damaged)
    assert kdn(tmp_path / "third", "store", "import", bundle, "--json").json["missing"] == 1
    bundle.write_bytes(b"nothing of the kind")
    refused = kdn(home, "store", "import", bundle)
    assert (refused.code, "no bundle" in refused.err) == (2, True)


def test_pins_outlive_the_command_and_hold_against_eviction(home: Path) -> None:
    assert kdn(home, "store", "pin", "--salt", "bob", "--json").json == {"blocks": 1}
    with open_store(home / "store", memory_bytes=0, disk_bytes=125_000) as store:
        for number in range(5):
            store.put(make_block(block_id([number, *range(2, 200)])))
        assert store.index.get(SECOND.id.key) is not None
        assert store.index.get(FIRST.id.key) is None
    assert kdn(home, "store", "unpin", "--salt", "bob", "--json").json == {"blocks": 1}
    assert kdn(home, "store", "pin", "--salt", "bob", "--for", "0", "--json").json["blocks"] == 1
    with open_store(home / "store", disk_bytes=125_000) as store:
        assert store.tenancy.persistent_pins.all() == {}, "expired"


def test_some_blocks_are_cleared_and_others_stay(home: Path) -> None:
    assert kdn(home, "store", "clear", "--salt", "bob", "--yes", "--json").json == {"forgotten": 1}
    assert kdn(home, "store", "stat", "--json").json["blocks"] == 1
    assert kdn(home, "store", "quota", "--json").json[""]["held_bytes"]["disk"] > 50_000
    assert kdn(home, "store", "compress", "none", "--all", "--json").json["blocks"] == 1
    assert kdn(home, "store", "compress", "gold", "--all").code == 2
    assert kdn(home, "store", "clear", "--key", "f" * 64, "--yes").code == 2
    assert kdn(home, "store", "clear", "--tier", "cellar", "--yes").code == 2


def test_a_tenants_quota_is_decided_or_forgotten_not_both(home: Path) -> None:
    looked = kdn(home, "store", "quota", "--salt", "nobody", "--json").json
    assert "nobody" not in looked, "to look decides nothing"
    quota = ("store", "quota", "--salt", "bob", "--json")
    assert kdn(home, *quota, "--limit", "70000").json["bob"]["limit_bytes"] == 70_000
    for option in ("--limit", "--priority"):
        refused = kdn(home, *quota, "--forget", option, "5")
        assert (refused.code, refused.out) == (2, "")
        assert "leave out --limit and --priority" in refused.err
    assert kdn(home, *quota).json["bob"]["limit_bytes"] == 70_000
    assert kdn(home, *quota, "--forget").json["bob"]["limit_bytes"] is None


def test_blocks_move_to_redis_and_are_warmed_back(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with redis_server(tmp_path) as (url, _):
        monkeypatch.setenv("KDN_STORE_REDIS_URL", url)
        moved = kdn(home, "store", "move", "--to", "redis", "--from", "disk", "--json").json
        assert (moved["blocks"], moved["missing"]) == (2, 0)
        tiers = kdn(home, "store", "stat", "--json").json["tiers"]
        assert (tiers["disk"]["blocks"], tiers["redis"]["blocks"]) == (0, 2)
        assert kdn(home, "store", "warm", "--json").json["blocks"] == 2
        assert kdn(home, "store", "stat", "--json").json["tiers"]["disk"]["blocks"] == 2
        assert kdn(home, "store", "copy", "--to", "redis", "--all", "--json").json["blocks"] == 2


@pytest.mark.parametrize("act", ["copy", "move"])
def test_no_block_goes_to_memory_which_ends_with_the_command(home: Path, act: str) -> None:
    refused = kdn(home, "store", act, "--all", "--from", "disk", "--to", "memory")
    assert (refused.code, refused.out) == (2, "")
    assert "the memory tier of this command ends with it; name one that stays (disk)" in refused.err
    assert kdn(home, "store", "stat", "--json").json["tiers"]["disk"]["blocks"] == 2


def test_a_node_serves_what_the_home_holds(home: Path, tmp_path: Path) -> None:
    program = start(home, "node", "--port", "0", "--admin-key", "root", "--json")
    try:
        assert program.stdout is not None
        said = json.loads(program.stdout.readline())
        assert said["blocks"] == 2
        listed = Path(f"/proc/{program.pid}/cmdline")
        assert not listed.exists() or "root" not in listed.read_text().split("\0")
        request = urllib.request.Request(f"{said['url']}/v1/store/stat")
        request.add_header("authorization", "Bearer root")
        with urllib.request.urlopen(request) as answer:
            assert json.load(answer)["blocks"] == 2
        stranger = tmp_path / "stranger"
        stranger.mkdir()
        (stranger / "kdn.toml").write_text(
            f'[store]\npeer_url = "{said["url"]}"\npeer_token = "wrong"\n'
        )
        looked = kdn(stranger, "store", "stat")
        assert "the peer tier could not be asked" in looked.err
        assert "401" in looked.err
    finally:
        program.terminate()
        rest = finish(program)
    assert rest.out == "", "what is logged would fill a pipe that nobody empties"
    assert "GET /v1/store/stat" in rest.err
    open_to_all = finish(start(home, "node", "--host", "0.0.0.0", "--port", "0"))
    assert (open_to_all.code, "--tenant NAME=KEY" in open_to_all.err) == (2, True)


def test_a_block_that_is_left_out_is_told_with_what_may_be_the_reason(
    home: Path, tmp_path: Path
) -> None:
    """One of two is damaged. Why a block went is recorded nowhere, so that no reason is told for sure."""
    damaged, _ = sorted((home / "store").rglob("*.kdn"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    done = kdn(home, "store", "export", tmp_path / "blocks.tar")
    assert done.out.startswith("exported 1 block, ")
    assert (
        "kdn: without 1 block: gone meanwhile (dropped, or evicted by another process), not whole, or"
        " in a tier that does not answer" in done.err
    )


def test_put_and_lookup_from_text(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    model, home, text = tiny_model(), tmp_path / "home", tmp_path / "note.txt"
    text.write_text("The lamp is lit at dusk. " * 8)
    options = ("--model", model, "--json")
    before = kdn(home, "store", "lookup", text, *options).json["files"][0]
    assert before["hit_tokens"] == 0
    put = kdn(home, "store", "put", text, "--public", *options).json
    assert put["salt"] == "public"
    after = kdn(home, "store", "lookup", text, "--salt", "anybody", *options).json["files"][0]
    assert after["hit_tokens"] == after["tokens"] == before["tokens"]
    assert {hit["public"] for hit in after["hits"]} == {True}
    assert kdn(home, "store", "put", text, "--public", "--salt", "x", *options).code == 2


def found(config: StoreConfig, home: Path) -> tuple[int, tuple[str, ...]]:
    with open_configured_store(Config(home=home, store=config)) as store:
        names = tuple(tier.name for tier in store.tiers)
        return store.match(MODEL, EXACT, "", PROMPT).num_tokens, names


def test_each_address_in_the_settings_adds_its_tier(home: Path, tmp_path: Path) -> None:
    with open_store(home / "store") as store, node_server(store, tenant_keys=("*=t",)) as url:
        here = tmp_path / "here"
        assert found(StoreConfig(), here) == (0, ("memory", "disk"))
        peer = StoreConfig(peer_url=url, peer_token="t", far_timeout_s=20)
        assert found(peer, here) == (256, ("memory", "disk", "peer"))
        stranger = StoreConfig(peer_url=url, peer_token="wrong", far_timeout_s=20)
        assert found(stranger, here)[0] == 0
        objects = StoreConfig(objects_url=f"file://{tmp_path}/objects", far_timeout_s=20)
        assert found(objects, here) == (0, ("memory", "disk", "objects"))


def test_quota_and_key_file_in_the_settings(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(f'master = "{"ab" * 32}"\n')
    keys.chmod(0o600)
    for config, kept in [
        (StoreConfig(quota_bytes=60_000), 1),
        (StoreConfig(quotas={"": 60_000}), 1),
        (StoreConfig(quotas={"somebody else": 60_000}), 2),
        (StoreConfig(key_file=keys, disk_direct=True), 2),
    ]:
        home = tmp_path / str(id(config))
        with open_configured_store(Config(home=home, store=config)) as store:
            for number in range(2):
                store.put(make_block(block_id([number, *range(1, 256)])))
            assert len(store.index.entries()) == kept
            store.check()
        sealed = [p.read_bytes()[:8] == b"\x89KDNSEAL" for p in (home / "store").rglob("*.kdn")]
        assert all(sealed) is (config.key_file is not None)
