"""Receivers for the benchmark of sharing: trained on a tiny model, behind longer contexts too."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from scripts.share.train import ShareRecipe, ShareTrainer
from tests.bench.lamps import write_lamps

import kdn
from kdn.errors import BadInput


def test_an_adapter_learns_goes_on_and_is_read(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Half of the contexts are long. A run that was stopped takes the same steps as one that was not."""
    folder = tiny_model("qwen2", max_position_embeddings=4096)
    data, out = write_lamps(tmp_path / "data"), tmp_path / "out"
    recipe = ShareRecipe(
        str(folder), tasks=("qa",), kinds=("lora",), rank=2, contexts=1, long=0.5, rounds=10
    )
    whole, first = (ShareTrainer(data, out / name, recipe) for name in ("whole", "parts"))
    for _ in range(10):
        whole.round()
    for _ in range(4):
        first.round()
    first.save()
    rest = ShareTrainer(data, out / "parts", recipe)
    assert rest.rounds == 4
    while rest.rounds < 10:
        rest.round()
    assert rest.losses == whole.losses
    assert rest.losses["qa-lora"][-1] < rest.losses["qa-lora"][0]
    rest.save()
    said = json.loads((out / "parts/qa-lora/adapter_config.json").read_text("utf-8"))
    assert (said["r"], said["base_model_name_or_path"]) == (2, folder.name)
    with kdn.open(folder, home=tmp_path, adapters={"qa": out / "parts/qa-lora"}) as opened:
        read = opened.model.adapters["qa"]
        assert (len(read.pairs), read.invocation) == (
            5 * opened.model.decoder.config.num_layers,
            (),
        )
    with pytest.raises(BadInput, match="another recipe"):
        ShareTrainer(data, out / "parts", replace(recipe, rank=4))
