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
    num_heads, hidden = _whole(raw, "num_attention_heads"), _whole(raw, "hidden_size")
    num_layers = _whole(raw, "num_hidden_layers")
    if not 1 <= num_layers <= _MOST["num_layers"] or num_heads < 1:
        raise ValueError(f"it asks for {num_layers} layers of {num_heads} heads")
    max_position = _whole(raw, "max_position_embeddings", 32_768)
    usual_dim = 128 if family == "qwen3" else hidden // num_heads
    bias = _flag(raw, "attention_bias")
    eos = generation.get("eos_token_id", raw.get("eos_token_id"))
    return ModelConfig(
        family=family,
        num_layers=num_layers,
        hidden_size=hidden,
        intermediate_size=_whole(raw, "intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=_whole(raw, "num_key_value_heads", num_heads),
        head_dim=_whole(raw, "head_dim", usual_dim),
        vocab_size=_whole(raw, "vocab_size"),
        max_position=max_position,
        rms_eps=_number(raw, "rms_norm_eps", 1e-6),
        rope=_rope(raw, max_position),
        qkv_bias=family == "qwen2" or (family in ("llama", "qwen3") and bias),
        o_bias=family in ("llama", "qwen3") and bias,
        mlp_bias=family == "llama" and _flag(raw, "mlp_bias"),
        qk_norm=family == "qwen3",
        tied_head=_flag(raw, "tie_word_embeddings"),
        sliding_window=_windows(family, raw, num_layers),
        eos_token_ids=_ids("eos_token_id", eos),
        bos_token_id=_first(_ids("bos_token_id", raw.get("bos_token_id"))),
    )


def _whole(raw: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A whole number; null is the default. Raises ValueError for what `int` would turn into another one."""
    value = raw[name] if default is None else raw.get(name)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise ValueError(f"{name} is {value!r:.40}, not a whole number")
    return int(value)


def _number(raw: Mapping[str, Any], name: str, default: float) -> float:
    value = raw.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {value!r:.40}, not a number")  # noqa: TRY004 one gate for all of them
    return float(value)


def _flag(raw: Mapping[str, Any], name: str, default: bool = False) -> bool:
    value = raw.get(name)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r:.40}, not true or false")
    return default if value is None else value


def _ids(name: str, value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    many = value if isinstance(value, list) else [value]
    return tuple(_whole({name: one}, name) for one in many)


def _first(ids: tuple[int, ...]) -> int | None:
    return ids[0] if ids else None


def _windows(family: str, raw: Mapping[str, Any], num_layers: int) -> tuple[int | None, ...]:
    if family == "llama":
        return (None,) * num_layers
    if family == "mistral":
        # Mistral's own config class means 4096 by a missing key; null switches the window off.
        return (_window(raw),) * num_layers
    window = _window(raw) if _flag(raw, "use_sliding_window") else None
    if window is None:
        return (None,) * num_layers
    kinds = raw.get("layer_types")
    if kinds is None:
        first = _whole(raw, "max_window_layers", 28)
        kinds = ["full_attention" if i < first else "sliding_attention" for i in range(num_layers)]
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown:
        raise WeightsError(f"layer_types {sorted(unknown)} are not computed by kdn")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _window(raw: Mapping[str, Any]) -> int | None:
    if raw.get("sliding_window", 4096) is None:
        return None
    window = _whole(raw, "sliding_window", 4096)
    if window < 1:
        raise ValueError(f"its sliding window is of {window} tokens")
    return window


def _rope(raw: Mapping[str, Any], max_position: int) -> RopeConfig:
    given = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = _number(given, "rope_theta", _number(raw, "rope_theta", 10_000.0))
    kind = str(given.get("rope_type", given.get("type", "default")))
    if kind not in _ROPE_KINDS:
        raise WeightsError(
            f"the model's RoPE is of type {kind!r}; kdn computes {', '.join(_ROPE_KINDS)}"
        )
    if _number({**raw, **given}, "partial_rotary_factor", 1.0) != 1.0:
        raise WeightsError("partial rotary position is not computed by kdn")
    if not (math.isfinite(theta) and theta > 0):
        raise ValueError(f"rope_theta is {theta}")
    if kind == "default":
        return RopeConfig(theta=theta)
    name = "original_max_position_embeddings"
    original = _whole(given, name, _whole(raw, name, max_position))
    factor = _number(given, "factor", max_position / original)
    low, high = _number(given, "low_freq_factor", 1.0), _number(given, "high_freq_factor", 4.0)
    if not (math.isfinite(factor) and factor > 0 and low < high):
        raise ValueError(f"RoPE is stretched by {factor} between {low} and {high}")
    return RopeConfig(
        kind=kind,
        theta=theta,
        factor=factor,
        original_max_position=original,
        low_freq_factor=low,
        high_freq_factor=high,
        beta_fast=_number(given, "beta_fast", 32.0) or 32.0,
        beta_slow=_number(given, "beta_slow", 1.0) or 1.0,
        attention_factor=given.get("attention_factor"),
        mscale=_number(given, "mscale", 0.0),
        mscale_all_dim=_number(given, "mscale_all_dim", 0.0),
        truncate=_flag(given, "truncate", True),
    )
