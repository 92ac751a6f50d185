"""Adapters from PEFT folders: the same logits as PEFT, on their own rows only."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kdn.errors import WeightsError
from kdn.model import AdapterRun, load_model
from kdn.model.decoder import DecoderLayer, LayerWeights
from kdn.model.linear import PackedLinear
from kdn.model.lora import MODULES
from kdn.model.norm import RmsNorm
from tests.model.reference import forward

# PEFT asks transformers a question that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

Tiny = Callable[..., Path]
TOKENS = tuple(range(40, 90))


def write_adapter(base: Path, folder: Path, **options: Any) -> Path:
    """A random adapter on `base`, written by PEFT itself."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 16, "init_lora_weights": False} | options
    get_peft_model(model, LoraConfig(**settings)).save_pretrained(folder)
    return folder


def peft_logits(base: Path, folder: Path) -> torch.Tensor:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        logits: torch.Tensor = PeftModel.from_pretrained(model, folder)(
            torch.tensor([TOKENS])
        ).logits[0]
    return logits


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"target_modules": list(MODULES)}),
        ("qwen2", {"target_modules": ["q_proj", "v_proj"], "use_rslora": True}),
        ("qwen3", {"target_modules": ["down_proj", "o_proj"], "r": 2}),
    ],
)
def test_logits_are_pefts(
    family: str, options: dict[str, Any], tiny_model: Tiny, model_cache: Path, tmp_path: Path
) -> None:
    base = tiny_model(family)
    folder = write_adapter(base, tmp_path / "adapter", **options)
    loaded = load_model(base, cache_dir=model_cache, dtype="float32", adapters={"mine": folder})
    ours = forward(loaded.decoder, TOKENS, loaded.adapters["mine"])
    assert (ours - peft_logits(base, folder)).abs().max() < 1e-4
    assert (ours - forward(loaded.decoder, TOKENS)).abs().max() > 1e-2


def test_each_run_of_rows_has_its_own_adapter(
    tiny_model: Tiny, model_cache: Path, tmp_path: Path
) -> None:
    base = tiny_model("llama")
    adapters = {
        name: write_adapter(base, tmp_path / name, r=rank, target_modules=list(MODULES))
        for name, rank in (("a", 2), ("b", 4))
    }
    loaded = load_model(base, cache_dir=model_cache, dtype="float32", adapters=adapters)
    layer = loaded.decoder.layers[1]
    hidden, attended = torch.randn(9, 64), torch.randn(9, 64)
    a, b = loaded.adapters["a"], loaded.adapters["b"]
    # rows 0-1 without, 2-4 with a, 5-8 with b
    mixed = layer.finish(hidden, attended, [AdapterRun(2, 5, a), AdapterRun(5, 9, b)])
    assert torch.equal(mixed[:2], layer.finish(hidden[:2], attended[:2]))
    for start, stop, adapter in ((2, 5, a), (5, 9, b)):
        alone = layer.finish(
            hidden[start:stop], attended[start:stop], [AdapterRun(0, stop - start, adapter)]
        )
        assert torch.equal(mixed[start:stop], alone)


def test_the_adapter_is_in_the_fingerprint(
    tiny_model: Tiny, model_cache: Path, tmp_path: Path
) -> None:
    base = tiny_model("llama")
    folder = write_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    loaded = load_model(base, cache_dir=model_cache, adapters={"x": folder})
    with_it = loaded.decoder.fingerprint_with(loaded.adapters["x"])
    assert with_it != loaded.decoder.fingerprint
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": 99}))
    other = load_model(base, cache_dir=model_cache, adapters={"x": folder})
    assert other.decoder.fingerprint_with(other.adapters["x"]) != with_it


def test_an_adapter_of_another_model_is_refused(
    tiny_model: Tiny, model_cache: Path, tmp_path: Path
) -> None:
    folder = write_adapter(tiny_model("llama"), tmp_path / "a", target_modules=["q_proj"])
    wider = tiny_model("llama", hidden_size=128, num_attention_heads=8)
    with pytest.raises(WeightsError, match="belongs to another model"):
        load_model(wider, cache_dir=model_cache, adapters={"a": folder})


def test_a_folder_without_an_adapter_is_refused(
    tiny_model: Tiny, model_cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=r"adapter_config\.json"):
        load_model(tiny_model("llama"), cache_dir=model_cache, adapters={"a": tmp_path})


class FusedGate(PackedLinear):
    """A gate on top of an up projection that rounds less in one pass, as the compiled one does."""

    def gated(self, x: torch.Tensor) -> torch.Tensor:
        return super().gated(x) + 1


def test_rows_of_the_base_go_the_way_they_go_alone_beside_an_adapter(
    tiny_model: Tiny, model_cache: Path, tmp_path: Path
) -> None:
    base = tiny_model("llama")
    folder = write_adapter(base, tmp_path / "a", target_modules=list(MODULES))
    model = load_model(base, cache_dir=model_cache, dtype="float32", adapters={"a": folder})
    adapter = model.adapters["a"]
    random = torch.Generator().manual_seed(0)

    def matrix(out: int, size: int) -> torch.Tensor:
        return torch.randn((out, size), generator=random) / 8

    norm = RmsNorm(torch.ones(64), 1e-6)
    qkv, down = PackedLinear(matrix(128, 64)), PackedLinear(matrix(64, 96))
    o, gate_up = PackedLinear(matrix(64, 64)), FusedGate(matrix(192, 64))
    weights = LayerWeights(norm, qkv, None, None, o, norm, gate_up, down)
    layer = DecoderLayer(0, model.decoder.config, weights)
    hidden, attended = matrix(5, 64), matrix(5, 64)
    beside = layer.finish(hidden, attended, [AdapterRun(2, 4, adapter)])
    alone = layer.finish(hidden, attended)
    assert torch.equal(beside[[0, 1, 4]], alone[[0, 1, 4]])
    own = layer.finish(hidden[2:4], attended[2:4], [AdapterRun(0, 2, adapter)])
    assert torch.equal(beside[2:4], own)
    assert not torch.equal(beside[2:4], alone[2:4])


@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys:RuntimeWarning")
@pytest.mark.parametrize(
    "patterns",
    [
        {"alpha_pattern": {"layers.0.self_attn.q_proj": 64}},
        {"alpha_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 40}},
        {"alpha_pattern": {"layers\\.\\d+\\.mlp\\..*": 32}, "rank_pattern": {"down_proj": 2}},
        {"alpha_pattern": {"proj": 64}, "rank_pattern": {"layers.0.self_attn.v_proj": 7}},
    ],
)
def test_alphas_and_ranks_go_by_pattern_as_pefts_do(
    patterns: dict[str, Any], tiny_model: Tiny, model_cache: Path, tmp_path: Path
) -> None:
    """A key is a pattern for whole steps at the end of a matrix's path; `proj` means none."""
    base = tiny_model("llama")
    modules = ["q_proj", "v_proj", "down_proj"]
    folder = write_adapter(base, tmp_path / "a", target_modules=modules, **patterns)
    model = load_model(base, cache_dir=model_cache, dtype="float32", adapters={"a": folder})
    ours = forward(model.decoder, TOKENS, model.adapters["a"])
    assert (ours - peft_logits(base, folder)).abs().max() < 1e-3
