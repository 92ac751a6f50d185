"""kdn inside a real vLLM on the CPU: what it loads is what it would have computed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kdn.scale.counts import METRICS
from kdn.store import open_store
from tests.scale.vllm.running import Vllm, VllmFailed, text, tiny, vllm
from tests.store.remotes import node_server, redis_server

pytestmark = pytest.mark.timeout(900)  # a vLLM starts in 8 s, on a busy machine in 40 s
PROMPT = text("a", 700)
CHILD: dict[str, object] = {
    "kv_connector": "KdnConnector",
    "kv_connector_module_path": "kdn.scale.vllm",
    "kv_role": "kv_both",
    "kv_connector_extra_config": {"memory_bytes": 1 << 26},
}
"""A connector's part of a MultiConnector."""
MULTI: dict[str, object] = {"kv_connector": "MultiConnector", "kv_connector_module_path": None}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kv") / "store"


@pytest.fixture(scope="module")
def engine(model: Path, folder: Path) -> Iterator[Vllm]:
    """One vLLM for all tests that need no other; each uses texts of its own."""
    with vllm(model, {"folder": str(folder)}, enable_lora=True, max_lora_rank=8) as started:
        yield started


def test_every_overridden_method_has_vllm_s_own_signature(engine: Vllm) -> None:
    found = engine.do("signatures")
    assert len(found) >= 18
    for name, (own, base) in found.items():
        assert own == base, name


def test_a_hit_is_the_longest_run_of_whole_blocks_and_gives_the_same_answer(engine: Vllm) -> None:
    """700 tokens are five whole blocks of 128; vLLM's own cache would give the same 640."""
    cold = engine.one(PROMPT)
    own = engine.one(PROMPT)
    engine.settle()
    hit = engine.one(PROMPT)
    assert (cold.cached, own.cached, hit.cached) == (0, 640, 640)
    assert hit == own, "bit for bit what vLLM's own prefix hit gives"
    assert hit.tokens == cold.tokens


def test_a_partial_prefix_is_loaded(engine: Vllm) -> None:
    document = text("partial", 700)
    engine.one(document)
    other = document[:300] + text("question", 90)
    engine.settle()
    found = engine.one(other)
    assert found.cached == 256
    engine.settle()
    without = engine.one(other, params={"kdn_load": False})
    assert (without.cached, without.tokens) == (0, found.tokens)


def test_what_vllm_has_is_not_loaded_again(engine: Vllm) -> None:
    prompt = text("both", 1000)
    engine.one(prompt)
    engine.settle()
    engine.one(prompt[:400])
    before = engine.counts()["loaded_tokens"]
    assert engine.one(prompt).cached == 896
    assert engine.counts()["loaded_tokens"] - before == 896 - 384


def test_two_tenants_share_nothing(engine: Vllm) -> None:
    prompt = text("tenants", 600)
    engine.one(prompt, salt="red")
    engine.one(prompt, params={"kdn_salt": "blue"})
    engine.settle()
    assert engine.one(prompt, salt="green").cached == 0
    assert engine.one(prompt).cached == 0
    engine.settle()
    assert engine.one(prompt, salt="red").cached == 512
    assert engine.one(prompt, params={"kdn_salt": "blue"}).cached == 512


def test_a_request_may_ask_not_to_be_stored(engine: Vllm) -> None:
    prompt = text("secret", 600)
    engine.one(prompt, params={"kdn_save": False})
    engine.settle()
    assert engine.one(prompt).cached == 0


def test_many_requests_together_get_what_each_gets_alone(engine: Vllm) -> None:
    prompts = [text("many", 400 + 40 * number) for number in range(8)]
    alone = [engine.one(prompt).tokens for prompt in prompts]
    engine.settle()
    together = engine.generate(*prompts)
    assert [one.tokens for one in together] == alone
    assert min(one.cached for one in together) >= 384


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_cancelled_request_leaves_the_engine_at_rest(engine: Vllm, steps: int) -> None:
    """After one step the load runs, after five the answer does."""
    prompt = text(f"cancelled {steps}", 700)
    cold = engine.one(prompt)
    engine.settle()
    assert engine.do("cancel", prompt=prompt, steps=steps)
    engine.settle()
    again = engine.one(prompt)
    assert (again.cached, again.tokens) == (640, cold.tokens)


def lora(folder: Path, seed: int) -> Path:
    """An adapter of rank 4 on the query projections, as peft writes it."""
    random = torch.Generator().manual_seed(seed)
    weights = {
        f"base_model.model.model.layers.{layer}.self_attn.{part}_proj.lora_{side}.weight": (
            torch.randn(shape, generator=random) / 4
        )
        for layer in range(4)
        for part, out in (("q", 128), ("v", 64))
        for side, shape in (("A", (4, 128)), ("B", (out, 4)))
    }
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def test_a_lora_retrained_under_its_old_name_finds_nothing_of_the_old_one(
    engine: Vllm, tmp_path: Path
) -> None:
    prompt, place = text("adapted", 700), lora(tmp_path / "style", 1)
    plain = engine.one(prompt)
    old = engine.one(prompt, lora=["style", 1, str(place), False])
    engine.settle()
    assert engine.one(prompt, lora=["style", 1, str(place), False]).cached == 640
    assert engine.one(prompt).cached == 640
    lora(place, 2)
    engine.settle()
    stale = engine.one(prompt, lora=["style", 1, str(place), False])
    assert (stale.cached, stale.tokens) == (0, old.tokens), "vLLM computes with what it loaded"
    engine.settle()
    new = engine.one(prompt, lora=["style", 1, str(place), True])
    assert new.cached == 0
    engine.settle()
    again = engine.one(prompt, lora=["style", 1, str(place), False])
    assert (again.cached, again.tokens) == (640, new.tokens)
    assert len({tuple(one.tokens) for one in (plain, old, new)}) == 3


def test_counters_reach_vllm_s_metrics(engine: Vllm) -> None:
    engine.one(text("metrics", 300))
    found = engine.do("metrics")
    assert {f"vllm:kdn_{name}_total" for name in METRICS} <= found.keys()
    assert found["vllm:kdn_lookups_total"] > 0
    assert found["vllm:kdn_saved_tokens_total"] > 0


def test_after_a_restart_and_beside_a_first_vllm_the_disk_gives_the_same(
    model: Path, folder: Path, engine: Vllm
) -> None:
    """A second vLLM on the same folder, while the first runs; then kdn's own engine finds nothing."""
    prompt = text("restart", 700)
    engine.one(prompt)
    own = engine.one(prompt)
    engine.settle()
    with vllm(model, {"folder": str(folder)}) as second:
        found = second.one(prompt)
        assert found == own
        more = text("the second's", 700)
        answer = second.one(more)
        second.do("flush")
    engine.do("reset")
    back = engine.one(more)
    assert (back.cached, back.tokens) == (640, answer.tokens)


def test_a_damaged_file_is_computed_again(model: Path, tmp_path: Path) -> None:
    """The first of three blocks damaged: nothing comes. The second: 256 of 640 tokens do."""
    settings = {"folder": str(tmp_path / "store"), "memory_bytes": 0}
    with vllm(model, settings) as engine:
        cold = engine.one(PROMPT)
        engine.settle()
        first, second, _ = blocks(tmp_path / "store")
        for number, (path, lost) in enumerate(((first, 640), (second, 384)), 1):
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 4
            path.write_bytes(data)
            before = engine.counts()
            found = engine.one(PROMPT)
            after = engine.counts()
            assert (found.tokens, found.reason) == (cold.tokens, "length")
            assert after["failed_tokens"] - before["failed_tokens"] == lost
            assert after["loaded_tokens"] - before["loaded_tokens"] == 640 - lost
            assert engine.do("stored")["corrupt"] == number
            engine.settle()
        before = engine.counts()
        assert engine.one(PROMPT).tokens == cold.tokens
        assert engine.counts()["loaded_tokens"] - before["loaded_tokens"] == 640, "stored again"
        for path in blocks(tmp_path / "store"):
            path.unlink()
        engine.do("reset")
        assert engine.one(PROMPT).tokens == cold.tokens


def blocks(store: Path) -> list[Path]:
    """The files of blocks, as they follow each other in the prompt: writers may end in any order."""
    with open_store(store, memory_bytes=0) as opened:
        starts = {str(entry.key): entry.start for entry in opened.index.entries()}
    return sorted(store.rglob("*.kdn"), key=lambda path: starts[path.stem])


def test_redis_and_a_node_serve_other_vllms_and_redis_dies(model: Path, tmp_path: Path) -> None:
    """The first writes to both; the second has only the node, the third only the Redis."""
    prompts = [text(f"far {number}", 600) for number in range(3)]
    with (
        redis_server(tmp_path) as (url, server),
        open_store(tmp_path / "node") as store,
        node_server(store, admin_key="k" * 32) as node,
    ):
        peer = {"peer_url": node, "peer_token": "k" * 32, "far_poll_s": 0}
        redis = {"redis_url": url, "far_poll_s": 0, "far_timeout_s": 0.5}
        with vllm(model, peer | redis) as first:
            cold = first.generate(*prompts)
            first.do("flush")
        with vllm(model, peer) as second:
            hit = second.one(prompts[0])
            assert (hit.cached, hit.tokens) == (512, cold[0].tokens)
        with vllm(model, redis) as third:
            hit = third.one(prompts[0])
            assert (hit.cached, hit.tokens) == (512, cold[0].tokens)
            assert third.counts()["loaded_tokens"] == 512
            server.kill()
            server.wait()
            for prompt, wanted in zip(prompts, cold, strict=True):
                third.do("reset")
                found = third.one(prompt)
                assert (found.tokens, found.reason) == (wanted.tokens, "length")


def test_other_weights_in_a_running_vllm_have_kv_of_their_own(model: Path, tmp_path: Path) -> None:
    """They find nothing of the old ones, and the next vLLM of the files finds nothing of theirs."""
    new = tiny(tmp_path / "new", seed=1)
    settings = {"folder": str(tmp_path / "store")}
    with vllm(new, None) as plain:
        wanted = plain.one(PROMPT)
    with vllm(model, settings) as engine:
        old = engine.one(PROMPT)
        engine.settle()
        assert engine.do("reload", path=str(new))
        cold = engine.one(PROMPT)
        assert (cold.cached, cold.tokens) == (0, wanted.tokens)
        engine.settle()
        warm = engine.one(PROMPT)
        assert (warm.cached, warm.tokens) == (640, wanted.tokens)
    with vllm(model, settings) as again:
        found = again.one(PROMPT)
        assert (found.cached, found.tokens) == (640, old.tokens)
    assert wanted.tokens != old.tokens


def test_preempted_requests_answer_as_ever(model: Path, tmp_path: Path) -> None:
    """Room for 14 blocks: three prompts of 500 that grow past 640 do not fit together."""
    prompts = [text(f"preempted {number}", 500) for number in range(3)]
    with vllm(model, None) as plain:
        wanted = [one.tokens for one in plain.generate(*prompts, max_tokens=200)]
    settings = {"folder": str(tmp_path / "store")}
    with vllm(model, settings, num_gpu_blocks_override=14, max_model_len=1024) as engine:
        for _ in range(2):
            found = engine.generate(*prompts, max_tokens=200)
            assert [one.tokens for one in found] == wanted
            engine.settle()


@pytest.mark.parametrize(
    ("transfer", "sentence"),
    [
        ({"kv_load_failure_policy": "fail"}, "kv_load_failure_policy is 'fail'"),
        ({"kv_connector_extra_config": {"foldr": "x"}}, "unknown field `foldr`"),
        ({"kv_connector_extra_config": {"redis_url": "http://x"}}, "no address of a Redis"),
        (
            MULTI | {"kv_connector_extra_config": {"connectors": [CHILD]}},
            "in a MultiConnector, in this connector's own part",
        ),
    ],
)
def test_wrong_settings_stop_a_connector_with_one_sentence(
    engine: Vllm, transfer: dict[str, object], sentence: str
) -> None:
    with pytest.raises(VllmFailed, match=f"^BadConfig: [^\n]*{sentence}[^\n]*$"):
        engine.do("connect", **transfer)


@pytest.mark.parametrize(
    ("spec", "more", "sentence"),
    [
        ("SlidingWindowSpec", {"sliding_window": 256}, "--disable-sliding-window"),
        ("RSWASpec", {"rswa_window": 256}, "does not know this model's KV cache"),
        ("FullAttentionSpec", {"non_causal": True}, "depends on later ones"),
    ],
)
def test_a_cache_that_keeps_no_whole_prompt_is_refused(
    engine: Vllm, spec: str, more: dict[str, object], sentence: str
) -> None:
    """vLLM's null block would be stored in place of what a window left behind."""
    with pytest.raises(VllmFailed, match=f"^BadInput: [^\n]*{sentence}[^\n]*$"):
        engine.do("connect", spec=spec, more=more)


def test_random_weights_are_refused(engine: Vllm) -> None:
    with pytest.raises(VllmFailed, match=r"^BadConfig: --load-format dummy [^\n]*$"):
        engine.do("connect", load_format="dummy")


def test_a_connector_that_fails_to_start_leaves_its_store(engine: Vllm, tmp_path: Path) -> None:
    """One and a half ranks: found out once the store is open, whose users have a file each."""
    settings = {"folder": str(tmp_path / "store"), "memory_bytes": 1 << 26}
    with pytest.raises(VllmFailed, match=r"^TypeError: .*float"):
        engine.do("connect", ranks=1.5, kv_connector_extra_config=settings)
    assert list((tmp_path / "store" / "owners").iterdir()) == []


def test_weights_of_the_hub_are_looked_for_where_vllm_keeps_them(
    engine: Vllm, tmp_path: Path
) -> None:
    kept = tmp_path / "models--somebody--tiny"
    snapshot = kept / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(snapshot.name)
    (snapshot / "config.json").write_text("{}")
    found = engine.do("folder", model="somebody/tiny", download_dir=str(tmp_path))
    assert found == str(snapshot)


def test_windows_beside_full_attention_are_kept_whole(engine: Vllm) -> None:
    """For such a model vLLM keeps all blocks of all layers, and notes the window."""
    assert engine.do("connect", spec="FullAttentionSpec", more={"sliding_window": 256})


def test_a_child_of_a_multiconnector_starts_with_a_policy_of_its_own(engine: Vllm) -> None:
    """It inherits none: without its own part it is refused, above, though the parent's is `recompute`."""
    own = CHILD | {"kv_load_failure_policy": "recompute"}
    transfer = MULTI | {"kv_connector_extra_config": {"connectors": [own]}}
    assert engine.do("connect", **transfer)


def test_what_may_be_computed_again_is_loaded_asynchronously(engine: Vllm) -> None:
    """Recomputing after a synchronous load gave wrong answers in a released vLLM."""
    prompt = text("asynchronous", 700)
    assert engine.do("match", prompt=prompt) == [0, False]
    engine.one(prompt)
    engine.settle()
    assert engine.do("match", prompt=prompt) == [640, True]
    assert engine.do("match", prompt=prompt) == [640, True], "a question changes nothing"


def test_an_unknown_version_is_refused_with_what_to_do(engine: Vllm) -> None:
    assert engine.do("refusal", version="") == ""
    refusal = engine.do("refusal", version="0.99.1")
    assert "vLLM 0.99.1 is installed, kdn's connector was tried with 0.32" in refusal


def test_a_salt_that_is_no_text_ends_no_engine(engine: Vllm) -> None:
    prompt = text("oddly salted", 600)
    answers = [engine.one(prompt, params={"kdn_salt": 5}) for _ in range(2)]
    engine.settle()
    assert [one.cached for one in (*answers, engine.one(prompt))] == [0, answers[1].cached, 0]
