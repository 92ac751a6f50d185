"""The decoder gives transformers' logits, for every family and every option it claims to know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdn.model import load_model
from kdn.model.gguf.file import unpack_gguf
from tests.model.reference import forward

TOKENS = tuple(int(t) for t in torch.randint(0, 256, (150,), generator=torch.manual_seed(3)))

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama head_dim": ("llama", {"head_dim": 32}),
    "llama3 rope": ("llama", {"rope_scaling": LLAMA3, "rope_theta": 500_000.0}),
    "linear rope": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 3.0}}),
    "dynamic rope": ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    "new rope keys": ("llama", {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}}),
    "mistral": ("mistral", {}),
    "mistral window": ("mistral", {"sliding_window": 40}),
    "qwen2": ("qwen2", {}),
    "qwen2 yarn": ("qwen2", {"rope_scaling": YARN}),
    "qwen2 yarn factors": (
        "qwen2",
        {"rope_scaling": YARN | {"beta_fast": 8, "beta_slow": 2, "attention_factor": 1.3}},
    ),
    "qwen2 window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {}),
    "qwen3 head_dim": ("qwen3", {"head_dim": 32, "attention_bias": True}),
    "qwen3 layer types": (
        "qwen3",
        {
            "use_sliding_window": True,
            "sliding_window": 40,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
}


def reference(folder: Path, tokens: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([tokens])).logits[0].float()
    return logits


@pytest.mark.parametrize("case", CASES)
def test_tiny_models_agree_with_transformers(
    case: str, tiny_model: Callable[..., Path], model_cache: Path
) -> None:
    family, options = CASES[case]
    folder = tiny_model(family, **options)
    decoder = load_model(folder, cache_dir=model_cache, dtype="float32").decoder
    assert (forward(decoder, TOKENS) - reference(folder, TOKENS)).abs().max() < 1e-4


def test_a_window_changes_something(tiny_model: Callable[..., Path], model_cache: Path) -> None:
    wide, narrow = (
        load_model(
            tiny_model("mistral", sliding_window=w), cache_dir=model_cache, dtype="float32"
        ).decoder
        for w in (None, 40)
    )
    assert (forward(wide, TOKENS) - forward(narrow, TOKENS)).abs().max() > 1e-2
    assert torch.equal(forward(wide, TOKENS[:40]), forward(narrow, TOKENS[:40]))


@pytest.mark.model
def test_smollm2_agrees_with_transformers(smollm2: Path, model_cache: Path) -> None:
    loaded = load_model(smollm2, cache_dir=model_cache, dtype="float32")
    text = "The capital of France is Paris. Water boils at 100 degrees. " * 12
    tokens = loaded.tokenizer.encode(text)
    folder = unpack_gguf(smollm2, model_cache / "unpacked", torch.float32)
    assert (forward(loaded.decoder, tokens) - reference(folder, tokens)).abs().max() < 1e-3


def test_allowed_logits_are_some_of_all(tiny_model: Callable[..., Path], model_cache: Path) -> None:
    decoder = load_model(tiny_model("llama"), cache_dir=model_cache, dtype="float32").decoder
    hidden = torch.randn(3, 64)
    some = decoder.logits(hidden, torch.tensor([7, 3]))
    assert torch.allclose(some, decoder.logits(hidden)[:, [7, 3]], atol=1e-5)
