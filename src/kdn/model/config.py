"""What a model is made of, read from a `config.json` of Llama, Mistral, Qwen2 or Qwen3.

Old files say `rope_theta` and `rope_scaling`, newer ones `rope_parameters`; both are understood.
Anything the decoder cannot compute is refused here, before a weight is read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdn.core import KvShape
from kdn.errors import WeightsError

__all__ = ["FAMILIES", "ModelConfig", "RopeConfig", "parse_config"]

FAMILIES = {"llama": "llama", "mistral": "mistral", "qwen2": "qwen2", "qwen3": "qwen3"}
"""`model_type` in config.json -> the family kdn computes it as."""

_MOST = {
    "num_layers": 4096,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 22,
    "num_heads": 1 << 14,
    "num_kv_heads": 1 << 14,
    "head_dim": 1 << 14,
    "vocab_size": 1 << 24,
    "max_position": 1 << 30,
}
"""What a config may say at most. Larger numbers are damage, and would take the memory first."""

_ROPE_KINDS = ("default", "linear", "llama3", "yarn", "dynamic")


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position: the base and how it is stretched to a longer context."""

    kind: str = "default"
    """`default`, `linear`, `llama3`, `yarn` or `dynamic`."""
    theta: float = 10_000.0
    factor: float = 1.0
    original_max_position: int = 0
    """The context the model was trained on before stretching (llama3, yarn)."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    """YaRN's scale of cos and sin; None means that it follows from `factor` or the mscales."""
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of one model: enough to compute it, given its weights."""

    family: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position: int
    rms_eps: float
    rope: RopeConfig
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tied_head: bool
    sliding_window: tuple[int | None, ...]
    """Per layer: a row sees itself and the `window - 1` positions before it; None means all."""
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            if not 1 <= getattr(self, name) <= most:
                raise WeightsError(
                    f"the config's {name} is {str(getattr(self, name))[:40]}, which no model has; the "
                    "config.json is damaged: fetch it again"
                )
        if self.head_dim % 2 or not 0 < self.rms_eps < 1:
            raise WeightsError(
                f"the config asks for heads of {self.head_dim} values and an epsilon of {self.rms_eps}; "
                "the config.json is damaged: fetch it again"
            )
        beyond = [token for token in self.eos_token_ids if not 0 <= token < self.vocab_size]
        if beyond:
            raise WeightsError(
                f"the model's end token is {str(beyond[0])[:40]} and its vocabulary holds {self.vocab_size}: "
                "it is damaged; fetch it again"
            )
        if self.num_heads % self.num_kv_heads:
            raise WeightsError(
                f"the config asks for {self.num_heads} heads over {self.num_kv_heads} KV heads, "
                "which does not divide; the config.json is damaged"
            )
        if len(self.sliding_window) != self.num_layers:
            raise WeightsError(
                f"the config lists {len(self.sliding_window)} layer types for {self.num_layers} "
                "layers; the config.json is damaged"
            )

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    def kv_shape(self, dtype: str) -> KvShape:
        """What one token's KV looks like when computed in `dtype`."""
        return KvShape(self.num_layers, self.num_kv_heads, self.head_dim, dtype)

    def architecture(self) -> dict[str, Any]:
        """The fields that KV depends on: everything but where generation begins and ends."""
        fields = dataclasses.asdict(self)
        del fields["eos_token_ids"], fields["bos_token_id"]
        return fields


def parse_config(
    raw: Mapping[str, Any], generation: Mapping[str, Any] | None = None
) -> ModelConfig:
    """A ModelConfig from the contents of config.json (and generation_config.json, if there is one).

    Raises WeightsError for an architecture or an option that kdn does not compute.
    """
    family = _family(raw)
    try:
        return _build(family, raw, generation or {})
    except KeyError as error:
        raise WeightsError(
            f"config.json of a {family} model lacks {error}; fetch the model again"
        ) from error
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise WeightsError(f"config.json of a {family} model is damaged: {error}") from error


def _family(raw: Mapping[str, Any]) -> str:
    kind = str(raw.get("model_type", "missing"))
    if kind not in FAMILIES:
        raise WeightsError(
            f"the model's type is {kind!r}; kdn computes {', '.join(FAMILIES)}: choose such a model"
        )
    if raw.get("hidden_act", "silu") not in ("silu", "swish"):
        raise WeightsError(f"hidden_act {raw['hidden_act']!r} is not computed by kdn, only 'silu'")
    if raw.get("quantization_config"):
        raise WeightsError(
            "the weights are stored quantised (quantization_config); take the model's original "
            "weights, or its GGUF file, and ask for int8 if memory is short"
        )
    return FAMILIES[kind]


def _build(family: str, raw: Mapping[str, Any], generation: Mapping[str, Any]) -> ModelConfig:
    num_heads, hidden = int(raw["num_attention_heads"]), int(raw["hidden_size"])
    num_layers = int(raw["num_hidden_layers"])
    if not 1 <= num_layers <= _MOST["num_layers"] or num_heads < 1:
        raise ValueError(f"it asks for {num_layers} layers of {num_heads} heads")
    max_position = int(raw.get("max_position_embeddings", 32_768))
    head_dim = raw.get("head_dim") or (128 if family == "qwen3" else hidden // num_heads)
    bias = bool(raw.get("attention_bias", False))
    eos = generation.get("eos_token_id", raw.get("eos_token_id"))
    return ModelConfig(
        family=family,
        num_layers=num_layers,
        hidden_size=hidden,
        intermediate_size=int(raw["intermediate_size"]),
        num_heads=num_heads,
        num_kv_heads=int(raw.get("num_key_value_heads") or num_heads),
        head_dim=int(head_dim),
        vocab_size=int(raw["vocab_size"]),
        max_position=max_position,
        rms_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope=_rope(raw, max_position),
        qkv_bias=family == "qwen2" or (family in ("llama", "qwen3") and bias),
        o_bias=family in ("llama", "qwen3") and bias,
        mlp_bias=family == "llama" and bool(raw.get("mlp_bias", False)),
        qk_norm=family == "qwen3",
        tied_head=bool(raw.get("tie_word_embeddings", False)),
        sliding_window=_windows(family, raw, num_layers),
        eos_token_ids=_ids(eos),
        bos_token_id=_first(_ids(raw.get("bos_token_id"))),
    )


def _ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(int(v) for v in value) if isinstance(value, list) else (int(value),)


def _first(ids: tuple[int, ...]) -> int | None:
    return ids[0] if ids else None


def _windows(family: str, raw: Mapping[str, Any], num_layers: int) -> tuple[int | None, ...]:
    if family == "llama":
        return (None,) * num_layers
    if family == "mistral":
        # Mistral's own config class means 4096 by a missing key; null switches the window off.
        window = raw.get("sliding_window", 4096)
        return (None if window is None else int(window),) * num_layers
    if not raw.get("use_sliding_window", False) or raw.get("sliding_window", 4096) is None:
        return (None,) * num_layers
    window = int(raw.get("sliding_window", 4096))
    kinds = raw.get("layer_types")
    if kinds is None:
        first = int(raw.get("max_window_layers", 28))
        kinds = ["full_attention" if i < first else "sliding_attention" for i in range(num_layers)]
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown:
        raise WeightsError(f"layer_types {sorted(unknown)} are not computed by kdn")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _rope(raw: Mapping[str, Any], max_position: int) -> RopeConfig:
    given = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = float(given.get("rope_theta", raw.get("rope_theta", 10_000.0)))
    kind = str(given.get("rope_type", given.get("type", "default")))
    if kind not in _ROPE_KINDS:
        raise WeightsError(
            f"the model's RoPE is of type {kind!r}; kdn computes {', '.join(_ROPE_KINDS)}"
        )
    if float(given.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))) != 1.0:
        raise WeightsError("partial rotary position is not computed by kdn")
    if not (math.isfinite(theta) and theta > 0):
        raise ValueError(f"rope_theta is {theta}")
    if kind == "default":
        return RopeConfig(theta=theta)
    original = int(
        given.get("original_max_position_embeddings")
        or raw.get("original_max_position_embeddings")
        or max_position
    )
    factor = max_position / original if given.get("factor") is None else float(given["factor"])
    low, high = float(given.get("low_freq_factor", 1.0)), float(given.get("high_freq_factor", 4.0))
    if not (math.isfinite(factor) and factor > 0 and low < high):
        raise ValueError(f"RoPE is stretched by {factor} between {low} and {high}")
    return RopeConfig(
        kind=kind,
        theta=theta,
        factor=factor,
        original_max_position=original,
        low_freq_factor=low,
        high_freq_factor=high,
        beta_fast=float(given.get("beta_fast") or 32.0),
        beta_slow=float(given.get("beta_slow") or 1.0),
        attention_factor=given.get("attention_factor"),
        mscale=float(given.get("mscale") or 0.0),
        mscale_all_dim=float(given.get("mscale_all_dim") or 0.0),
        truncate=bool(given.get("truncate", True)),
    )
