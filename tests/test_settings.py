"""Settings that no room's own tests follow from the file to their effect."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import torch

import kdn
from kdn.api.store import open_configured_store
from kdn.config import Config, StoreConfig, load_config
from kdn.core import EXACT, Sampling
from kdn.errors import PromptTooLong
from kdn.store import RemoteTier, Store, open_store
from kdn.trace import Recorder
from tests.cli.program import finish, start
from tests.serve.store.test_node import self_signed
from tests.store.helpers import MODEL, block_id, make_block
from tests.store.remotes import node_server, s3_server

TESTS = Path(__file__).parent
ONE = Sampling(max_tokens=1, ignore_eos=True)
FEW = Sampling(max_tokens=4, ignore_eos=True)
PROMPT = tuple(range(256))
BLOCK = make_block(block_id(PROMPT))


def test_every_setting_is_set_by_some_test() -> None:
    text = "\n".join(path.read_text() for path in TESTS.rglob("*.py"))
    for room in (name for name in Config.__struct_fields__ if name != "home"):
        kind = type(getattr(Config(home=TESTS), room))
        for field in kind.__struct_fields__:
            ways = rf"\b{field}=|\b{field} = |\b(kdn_)?{room}_{field}\b"
            assert re.search(ways, text, re.IGNORECASE), f"no test sets [{room}] {field}"


def opened(folder: Path, home: Path, trace: Recorder | None = None, **settings: str) -> kdn.Kdn:
    environ = {f"KDN_{name.upper()}": value for name, value in settings.items()}
    return kdn.open(folder, config=load_config(environ, home=home), trace=trace)


def test_a_prompt_beyond_the_kv_budget_is_refused(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_model()
    with opened(folder, tmp_path, engine_kv_budget_bytes="140 KB", engine_dtype="float32") as k:
        with pytest.raises(PromptTooLong, match="budget"):
            k.generate("a lamp is lit " * 30, sampling=FEW)
        assert k.generate("a", sampling=FEW).usage.completion_tokens == 4


def test_prefixes_stay_in_the_engine_as_long_as_they_have_memory(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Three questions about one document: the first computes it, the second loads it, the third finds it."""
    folder, document, hits = tiny_model(), ["The lamp is lit at dusk. " * 6], []
    for given in ("0", "1 GB"):
        with opened(folder, tmp_path / given, engine_resident_bytes=given) as k:
            for number in range(3):
                k.generate(f"Number {number}?", document, sampling=ONE)
                k.catch_up()
            resident = k.engine.stat().resident
        assert resident is not None
        hits.append((resident.num_hits, resident.num_prefixes))
    assert hits == [(0, 0), (1, 1)]


def test_the_limits_of_passes_and_stalls_reach_the_engine(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """What they do there is told in tests/engine."""
    with opened(tiny_model(), tmp_path, engine_max_batch_tokens="64", engine_max_stall_ms="7") as k:
        limits = k.engine._limits
        assert (limits.max_batch_tokens, limits.max_stall_ms) == (64, 7.0)


def test_torch_gets_the_threads_of_the_settings(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    before = torch.get_num_threads()
    try:
        for wanted in (1, 2):
            with opened(tiny_model(), tmp_path / str(wanted), engine_threads=str(wanted)):
                assert torch.get_num_threads() == wanted
    finally:
        torch.set_num_threads(before)


def test_a_strict_guard_mends_more_or_stops_and_a_lenient_one_does_nothing(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder, documents = tiny_model(), ["The lamp is lit at dusk. " * 6, "A ship goes by. " * 6]
    acted = []
    for limit in ("1e-12", "1e9"):
        trace = Recorder()
        home = tmp_path / limit
        with opened(folder, home, trace, blend_guard_every="1", blend_guard_kl=limit) as k:
            for number in range(10):
                k.generate(f"Number {number}?", documents[::-1], sampling=ONE, reuse="blend")
                k.catch_up()
        acted.append(trace.count("blend.ratio") + trace.count("blend.stop") > 0)
    assert acted == [True, False]


def matched(home: Path, config: StoreConfig) -> int:
    with open_configured_store(Config(home=home, store=config)) as store:
        return store.match(MODEL, EXACT, "", PROMPT).num_tokens


def test_a_peer_is_believed_by_the_authority_in_the_settings(tmp_path: Path) -> None:
    pem = self_signed(tmp_path / "node.pem")
    with open_store(None) as held, node_server(held, tenant_keys=("*=t",), certificate=pem) as url:
        held.put(BLOCK)
        for authority, tokens in ((pem, 256), (None, 0)):
            settings = StoreConfig(
                peer_url=url, peer_token="t", peer_authority=authority, far_timeout_s=20
            )
            assert matched(tmp_path / f"home-{tokens}", settings) == tokens


def test_news_of_a_peer_are_as_old_as_the_setting_allows(tmp_path: Path) -> None:
    """At 0 every look asks; at an hour what came after the first look is not known."""
    with open_store(None) as held, node_server(held, tenant_keys=("*=t",)) as url:
        stores: list[Store] = []
        for late in (0.0, 3600.0):
            settings = StoreConfig(peer_url=url, peer_token="t", far_poll_s=late, far_timeout_s=20)
            config = Config(home=tmp_path / str(late), store=settings)
            stores.append(open_configured_store(config))
        before = [one.match(MODEL, EXACT, "", PROMPT).num_tokens for one in stores]
        held.put(BLOCK)
        after = [one.match(MODEL, EXACT, "", PROMPT).num_tokens for one in stores]
        for one in stores:
            one.close()
    assert (before, after) == ([0, 0], [256, 0])


def test_the_object_stores_own_options_are_handed_on(tmp_path: Path) -> None:
    pytest.importorskip("obstore", reason="obstore is not installed")
    with s3_server(tmp_path) as options:
        config = StoreConfig(
            objects_url="s3://kv-test/blocks",
            object_options=options,
            far_timeout_s=20,
        )
        with open_configured_store(Config(home=tmp_path, store=config)) as store:
            tier = store.tiers.named("objects")
            assert isinstance(tier, RemoteTier)
            store.put(BLOCK)
            store.flush()
            assert tier.usage().blocks == 1


def test_a_node_takes_its_keys_and_its_certificate_from_the_settings(tmp_path: Path) -> None:
    both = self_signed(tmp_path / "both.pem").read_text()
    key, certificate = re.findall(r"-----BEGIN.*?-----END [A-Z ]+-----\n", both, re.DOTALL)
    (tmp_path / "key.pem").write_text(key)
    (tmp_path / "certificate.pem").write_text(certificate)
    (tmp_path / "kdn.toml").write_text(
        f"""
        [serve]
        store_key = "root"
        certificate = "{tmp_path}/certificate.pem"
        private_key = "{tmp_path}/key.pem"
        """
    )
    program = start(tmp_path, "node", "--port", "0", "--json")
    try:
        assert program.stdout is not None
        url = json.loads(program.stdout.readline())["url"]
        trusted = ssl.create_default_context(cafile=tmp_path / "certificate.pem")
        with httpx.Client(base_url=f"{url}/v1/store", verify=trusted, timeout=60) as http:
            answers = [
                http.get("/stat", headers={"authorization": f"Bearer {token}"}).status_code
                for token in ("root", "other")
            ]
    finally:
        program.terminate()
        finish(program)
    assert answers == [200, 401]
