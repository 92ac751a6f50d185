"""Instruments for tests, ours and users': tiny models with random weights, in the published form.

Needs torch and safetensors, and nothing else of kdn.  What is written can be loaded by kdn and by
transformers alike.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["TINY_TEMPLATE", "tiny_config", "write_tiny_model"]

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_SPECIALS = ("<|end|>", "<|turn|>")

TINY_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|turn|>' + message['role'] + '\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|turn|>assistant\n' }}{% endif %}"
)
"""The chat template of tiny models."""


def tiny_config(family: str, **options: Any) -> dict[str, Any]:
    """A config.json for a model of `llama`, `mistral`, `qwen2` or `qwen3` that computes in no time.

    Two layers of four heads over two KV heads; `options` are published keys and win over these.
    """
    config: dict[str, Any] = {
        "architectures": [_CLASSES[family]],
        "model_type": family,
        "hidden_act": "silu",
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256 + len(_SPECIALS),
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
        "sliding_window": None,
        "eos_token_id": 256,
        "bos_token_id": None,
    }
    if family == "qwen3":
        config["head_dim"] = 16
    return config | options


def write_tiny_model(folder: Path, family: str, seed: int = 0, **options: Any) -> Path:
    """Write config.json, model.safetensors, a byte-level tokenizer and a chat template to `folder`.

    Equal arguments write equal weights.  `options` as for `tiny_config`.  Gives `folder` back.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config(family, **options)
    _write(folder / "config.json", config)
    save_file(_weights(config, seed), folder / "model.safetensors", metadata={"format": "pt"})
    _write(folder / "tokenizer.json", _tokenizer())
    settings = {"eos_token": _SPECIALS[0], "bos_token": None, "chat_template": TINY_TEMPLATE}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    _write(folder / "tokenizer_config.json", settings)
    return folder


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), "utf-8")


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    table = (config["vocab_size"], hidden)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": table}
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}"
        shapes[f"{at}.input_layernorm.weight"] = (hidden,)
        shapes[f"{at}.post_attention_layernorm.weight"] = (hidden,)
        linears = {"q": (q, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, q)}
        for name, shape in linears.items():
            shapes[f"{at}.self_attn.{name}_proj.weight"] = shape
            if _has_bias(config, name):
                shapes[f"{at}.self_attn.{name}_proj.bias"] = shape[:1]
        if config["model_type"] == "qwen3":
            shapes[f"{at}.self_attn.q_norm.weight"] = shapes[f"{at}.self_attn.k_norm.weight"] = (
                dim,
            )
        for name in ("gate", "up", "down"):
            shape = (hidden, inner) if name == "down" else (inner, hidden)
            shapes[f"{at}.mlp.{name}_proj.weight"] = shape
            if config["model_type"] == "llama" and config.get("mlp_bias"):
                shapes[f"{at}.mlp.{name}_proj.bias"] = shape[:1]
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = table
    return shapes


def _has_bias(config: dict[str, Any], name: str) -> bool:
    if config["model_type"] == "qwen2":
        return name != "o"
    return config["model_type"] != "mistral" and bool(config.get("attention_bias"))


def _weights(config: dict[str, Any], seed: int) -> dict[str, Tensor]:
    """Random, and large enough that attention is far from even: mistakes show in the logits."""
    random = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in _shapes(config).items():
        noise = torch.randn(shape, generator=random)
        weights[name] = (
            1 + noise / 10 if name.endswith("norm.weight") else noise * _scale(name, shape)
        )
    return weights


def _scale(name: str, shape: tuple[int, ...]) -> float:
    if name.endswith("bias"):
        return 0.2
    return 1.0 if "embed" in name else 1.5 / shape[1] ** 0.5


def _byte_alphabet() -> list[str]:
    """The printable stand-ins that byte-level BPE uses for the 256 bytes, in byte order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _tokenizer() -> dict[str, Any]:
    """One token a byte, and the two control tokens."""
    vocab = {char: i for i, char in enumerate(_byte_alphabet())}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": 256 + i, "content": t, **flags, "special": True} for i, t in enumerate(_SPECIALS)
    ]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [],
        },
    }
