"""A short list of models of the hub that kdn runs well, with what each needs. Nothing is downloaded here.

Parameters and KV follow from the published shapes, which a test counts again; what a process needs beside
them is an estimate. A GGUF file's size is its publisher's, to two digits.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["HUB_MODELS", "HubModel", "Need", "hub_model", "recommend"]

_WORKING_BYTES = 1 << 30
"""Python, torch and one pass, beside weights and KV."""
DEFAULT_CONTEXT = 8192


@dataclass(frozen=True)
class Need:
    """Memory that a model takes while it answers."""

    weights_bytes: int
    kv_bytes: int
    """Of one prompt as long as was asked."""

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + _WORKING_BYTES


@dataclass(frozen=True)
class HubModel:
    """A model of the hub by a short name."""

    name: str
    hub_id: str
    parameters: int
    """As stored, the output matrix included where it is a file's own."""
    layers: int
    kv_heads: int
    head_dim: int
    context: int
    licence: str
    gguf_id: str
    """Where its quantised file is published."""
    gguf_file: str
    gguf_bytes: int
    strength: str
    """What it is good for, in a phrase."""

    @property
    def download_bytes(self) -> int:
        """Of the published weights: two bytes a parameter."""
        return 2 * self.parameters

    @property
    def kv_token_bytes(self) -> int:
        """K and V of one token at all layers, in bf16."""
        return 4 * self.layers * self.kv_heads * self.head_dim

    @property
    def is_gated(self) -> bool:
        """Must its licence be accepted on the hub first?"""
        return self.licence.startswith("Llama")

    def need(self, context: int = DEFAULT_CONTEXT, *, int8: bool = False) -> Need:
        """What answering over `context` tokens takes; `int8` halves the weights."""
        weights = self.parameters if int8 else self.download_bytes
        return Need(weights, self.kv_token_bytes * min(context, self.context))


HUB_MODELS = (
    HubModel(
        "smollm2-360m", "HuggingFaceTB/SmolLM2-360M-Instruct", 361_821_120, 32, 5, 64, 8192, "Apache-2.0",
        "HuggingFaceTB/SmolLM2-360M-Instruct-GGUF", "smollm2-360m-instruct-q8_0.gguf", 386_000_000,
        "quick drafts, labels",
    ),
    HubModel(
        "qwen3-0.6b", "Qwen/Qwen3-0.6B", 751_632_384, 28, 8, 128, 40_960, "Apache-2.0",
        "Qwen/Qwen3-0.6B-GGUF", "Qwen3-0.6B-Q8_0.gguf", 640_000_000,
        "short answers over documents, many languages",
    ),
    HubModel(
        "llama3.2-1b", "meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400, 16, 8, 64, 131_072, "Llama 3.2",
        "bartowski/Llama-3.2-1B-Instruct-GGUF", "Llama-3.2-1B-Instruct-Q4_K_M.gguf", 810_000_000,
        "long documents on little memory",
    ),
    HubModel(
        "smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B-Instruct", 1_711_376_384, 24, 32, 64, 8192, "Apache-2.0",
        "HuggingFaceTB/SmolLM2-1.7B-Instruct-GGUF", "smollm2-1.7b-instruct-q4_k_m.gguf", 1_060_000_000,
        "English answers over short documents",
    ),
    HubModel(
        "qwen3-1.7b", "Qwen/Qwen3-1.7B", 2_031_739_904, 28, 8, 128, 40_960, "Apache-2.0",
        "Qwen/Qwen3-1.7B-GGUF", "Qwen3-1.7B-Q8_0.gguf", 1_830_000_000,
        "answers over documents, many languages",
    ),
    HubModel(
        "llama3.2-3b", "meta-llama/Llama-3.2-3B-Instruct", 3_212_749_824, 28, 8, 128, 131_072, "Llama 3.2",
        "bartowski/Llama-3.2-3B-Instruct-GGUF", "Llama-3.2-3B-Instruct-Q4_K_M.gguf", 2_020_000_000,
        "answers over long documents",
    ),
    HubModel(
        "qwen3-4b", "Qwen/Qwen3-4B", 4_022_468_096, 36, 8, 128, 40_960, "Apache-2.0",
        "Qwen/Qwen3-4B-GGUF", "Qwen3-4B-Q4_K_M.gguf", 2_500_000_000,
        "the best answers of this list",
    ),
)  # fmt: skip
"""Smallest first."""

GGUF = "-gguf"
"""Ends the name of a model's quantised file."""


def hub_model(name: str) -> tuple[HubModel, bool] | None:
    """The model of that short name, and whether its GGUF file is meant; None for another name."""
    wanted = name.lower()
    for model in HUB_MODELS:
        if wanted in (model.name, model.name + GGUF):
            return model, wanted.endswith(GGUF)
    return None


def recommend(memory_bytes: int, context: int = DEFAULT_CONTEXT) -> tuple[HubModel, bool] | None:
    """The largest model that fits into `memory_bytes` with `context` tokens, and whether only with `int8`.

    None where none does.  A model that fits in bf16 wins over a larger one only where that one fits not
    even in int8.
    """
    for model in reversed(HUB_MODELS):
        if context > model.context:
            continue
        for int8 in (False, True):
            if model.need(context, int8=int8).total_bytes <= memory_bytes:
                return model, int8
    return None
