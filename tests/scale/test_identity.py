"""Whose KV it is: anything that changes the numbers changes the fingerprint, and nothing else does."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import pytest

from kdn.errors import BadConfig, StoreError, WeightsError
from kdn.scale.identity import (
    Adapters,
    EngineIdentity,
    digest_config,
    digest_weights,
    rope_factors,
    salt_of,
)
from kdn.scale.settings import SharedStores, read_settings
from kdn.store import Store

SELF = EngineIdentity("vllm-0.32.0", "w", "c", "bf16", "auto", "None", "cpu", "auto", "kv")


@pytest.mark.parametrize("name", [field.name for field in fields(EngineIdentity)])
def test_every_part_is_in_the_fingerprint(name: str) -> None:
    changed = replace(SELF, **cast("Any", {name: 2 if "ranks" in name else "another"}))
    assert changed.fingerprint(None, 0) != SELF.fingerprint(None, 0)


def test_no_two_pairs_of_salts_are_one_tenant() -> None:
    """Of one text only `cache_salt` is kept: blocks that were stored under it are found."""
    texts = (None, "a", "b", "a:b", "1:a", "1:a:b", "0::b", "5:1:a:b:")
    found = {salt_of(one, other): (one, other) for one in texts for other in texts}
    assert len(found) == len(texts) ** 2
    assert (salt_of(None, None), salt_of("a:b", None)) == ("", "a:b")
    assert (salt_of("a", "b"), salt_of(None, "b")) == ("1:a:b", "0::b")


def test_adapter_and_rank_are_in_the_fingerprint() -> None:
    found = {SELF.fingerprint(adapter, rank) for adapter in (None, "a", "b") for rank in (0, 1)}
    assert len(found) == 6


def test_weights_are_told_by_their_bytes_not_by_their_place(
    tiny_model: Callable[..., Path],
) -> None:
    first, same, other = (digest_weights(tiny_model(seed=seed)) for seed in (0, 0, 1))
    assert first == same
    assert first != other


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="holds no weight files"):
        digest_weights(tmp_path)


def test_a_configuration_is_told_without_its_place() -> None:
    told = digest_config({"rope_theta": 1e4, "_name_or_path": "/here"})
    assert told == digest_config({"rope_theta": 1e4, "_name_or_path": "/there"})
    assert told != digest_config({"rope_theta": 1e5})


def longrope(**more: object) -> dict[str, object]:
    return {"rope_type": "longrope", "original_max_position_embeddings": 4096, **more}


@pytest.mark.parametrize(
    ("config", "factors"),
    [
        ({"rope_parameters": longrope()}, ("short", "long")),
        ({"text_config": {"rope_parameters": {"full_attention": longrope()}}}, ("short", "long")),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, ("", "")),
        ({"rope_parameters": None}, ("", "")),
    ],
)
def test_factors_of_longrope_follow_the_longest_prompt(
    config: dict[str, object], factors: tuple[str, str]
) -> None:
    """vLLM takes the long ones for every prompt where one may be beyond 4,096 tokens."""
    assert (rope_factors(config, 4096), rope_factors(config, 4097)) == factors


def test_what_tells_nothing_leaves_the_names_of_older_blocks() -> None:
    """The name as it was before `rope` and generations were there."""
    said = {field.name: getattr(SELF, field.name) for field in fields(SELF) if field.name != "rope"}
    told = json.dumps(said | {"adapter": None, "rank": 0}, sort_keys=True)
    assert SELF.fingerprint(None, 0) == hashlib.sha256(told.encode()).hexdigest()
    assert SELF.fingerprint(None, 0, "new weights") != SELF.fingerprint(None, 0)


def adapter(folder: Path, weights: bytes, alpha: int = 8) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "adapter_config.json").write_text(f'{{"lora_alpha": {alpha}}}')
    return folder


def test_adapters_are_told_by_weights_and_settings(tmp_path: Path) -> None:
    adapters = Adapters()
    found = [
        adapters.digest(1, adapter(tmp_path / "a", b"one")),
        adapters.digest(2, adapter(tmp_path / "b", b"one")),
        adapters.digest(3, adapter(tmp_path / "c", b"two")),
        adapters.digest(4, adapter(tmp_path / "d", b"one", alpha=16)),
    ]
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_an_adapter_without_files_has_no_name(tmp_path: Path) -> None:
    assert Adapters().digest(1, tmp_path / "missing") is None


def test_files_that_change_under_a_loaded_adapter_take_its_name_until_it_is_reloaded(
    tmp_path: Path,
) -> None:
    adapters = Adapters()
    before = adapters.digest(1, adapter(tmp_path / "a", b"one"))
    adapter(tmp_path / "a", b"two, trained again")
    assert adapters.digest(1, tmp_path / "a") is None
    assert adapters.digest(1, tmp_path / "a") is None
    after = adapters.digest(1, tmp_path / "a", reloaded=True)
    assert after is not None
    assert after != before
    assert adapters.digest(1, tmp_path / "a") == after


def test_files_that_are_only_touched_keep_their_name(tmp_path: Path) -> None:
    adapters = Adapters()
    folder = adapter(tmp_path / "a", b"one")
    before = adapters.digest(1, folder)
    os.utime(folder / "adapter_model.safetensors", (1, 1))
    assert adapters.digest(1, folder) == before


def test_settings_come_as_json_has_them(tmp_path: Path) -> None:
    settings = read_settings({"folder": str(tmp_path), "memory_bytes": 5, "redis_url": "redis://h"})
    assert settings.folder == tmp_path
    assert settings.tiers() == "memory, disk, redis_url"
    assert settings.is_shared
    assert not read_settings({}).is_shared


@pytest.mark.parametrize(
    "wrong",
    [{"foldr": "x"}, {"memory_bytes": -1}, {"load_threads": 0}, {"folder": 3}, {"save": "yes"}],
)
def test_wrong_settings_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(BadConfig, match=next(iter(wrong))):
        read_settings(wrong)


def test_connectors_with_equal_settings_share_a_store_until_the_last_leaves(tmp_path: Path) -> None:
    shared = SharedStores()
    settings = read_settings({"folder": str(tmp_path / "a"), "memory_bytes": 1 << 20})
    first, second = shared.enter(settings), shared.enter(settings)
    assert first is second
    other = shared.enter(read_settings({"memory_bytes": 1 << 20}))
    assert other is not first
    shared.leave(first)
    assert shared.enter(settings) is first
    for store in (first, first, other):
        shared.leave(store)
    shared.leave(first)  # no user any more: nothing happens
    again: Store = shared.enter(settings)
    assert again is not first
    shared.leave(again)


def test_a_folder_of_something_else_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(StoreError, match=str(tmp_path)):
        SharedStores().enter(read_settings({"folder": str(tmp_path)}))
