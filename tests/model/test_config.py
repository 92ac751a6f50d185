"""What config.json says, in both generations of it, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdn.errors import WeightsError
from kdn.model import Rope, RopeConfig
from kdn.model.config import ModelConfig, parse_config
from kdn.model.rope import rotate
from kdn.testing import tiny_config


def parsed(family: str, **options: Any) -> ModelConfig:
    return parse_config(tiny_config(family, **options))


def test_old_and_new_rope_keys_mean_the_same() -> None:
    scale = {"rope_type": "linear", "factor": 2.0}
    old = parsed("llama", rope_theta=5e5, rope_scaling=scale)
    new = parsed("llama", rope_parameters=scale | {"rope_theta": 5e5})
    assert old.rope == new.rope
    assert old.rope.theta == 5e5


def test_an_old_type_key_is_read() -> None:
    assert parsed("llama", rope_scaling={"type": "linear", "factor": 2.0}).rope.kind == "linear"


def test_windows_by_layer() -> None:
    on = {"use_sliding_window": True, "sliding_window": 8}
    assert parsed("qwen2", **on, max_window_layers=1).sliding_window == (None, 8)
    assert parsed("qwen2", sliding_window=8).sliding_window == (None, None)
    assert parsed("mistral", sliding_window=8).sliding_window == (8, 8)
    kinds = ["sliding_attention", "full_attention"]
    assert parsed("qwen3", **on, layer_types=kinds).sliding_window == (8, None)


def test_generation_config_wins_on_where_to_stop() -> None:
    config = parse_config(tiny_config("llama"), {"eos_token_id": [1, 2]})
    assert config.eos_token_ids == (1, 2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "longrope"),
        ({"partial_rotary_factor": 0.5}, "partial"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"num_key_value_heads": 3}, "does not divide"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide', not a whole number"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True, not a whole number"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5, not a whole number"),
        ({"vocab_size": float("inf")}, "damaged"),
        ({"rms_norm_eps": True}, "rms_norm_eps is True, not a number"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no', not true or false"),
        ({"eos_token_id": [2, True]}, "eos_token_id is True, not a whole number"),
        ({"use_sliding_window": True, "sliding_window": -1}, "window is of -1 tokens"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "factor is '2', not a number"),
        ({"use_sliding_window": True, "sliding_window": 4, "layer_types": ["chunked"]}, "chunked"),
    ],
)
def test_what_is_not_computed_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(WeightsError, match=says):
        parse_config(tiny_config("qwen2") | options)


def test_a_missing_key_is_named() -> None:
    raw = tiny_config("llama")
    del raw["num_hidden_layers"]
    with pytest.raises(WeightsError, match="num_hidden_layers"):
        parse_config(raw)


# --- rotation --------------------------------------------------------------------------------


def test_position_zero_changes_nothing() -> None:
    rope = Rope(RopeConfig(), 16)
    x = torch.randn(3, 2, 16)
    assert torch.equal(rotate(x, *rope.tables(torch.zeros(3, dtype=torch.int64))), x)


def test_a_quarter_turn() -> None:
    """With two numbers a head the angle is the position in radians."""
    rope = Rope(RopeConfig(), 2)
    cos, sin = rope.tables(torch.tensor([1]))
    turned = rotate(torch.tensor([[[1.0, 0.0]]]), cos, sin)
    assert torch.allclose(turned, torch.tensor([[[0.5403, 0.8415]]]), atol=1e-4)


def test_only_the_distance_between_query_and_key_counts() -> None:
    rope = Rope(RopeConfig(), 64)
    q, k = torch.randn(1, 1, 64), torch.randn(1, 1, 64)

    def score(q_at: int, k_at: int) -> float:
        q_turned = rotate(q, *rope.tables(torch.tensor([q_at])))
        k_turned = rotate(k, *rope.tables(torch.tensor([k_at])))
        return float((q_turned * k_turned).sum())

    assert score(7, 3) == pytest.approx(score(1007, 1003), abs=1e-3)


def test_rotation_keeps_the_dtype_and_the_input() -> None:
    rope = Rope(RopeConfig(), 16)
    x = torch.randn(4, 3, 16).bfloat16()
    before = x.clone()
    turned = rotate(x, *rope.tables(torch.arange(4)))
    assert turned.dtype == torch.bfloat16
    assert torch.equal(x, before)


def test_only_dynamic_rope_depends_on_length() -> None:
    assert Rope(RopeConfig(kind="dynamic", factor=2.0), 16).length_dependent
    assert not Rope(RopeConfig(kind="linear", factor=2.0), 16).length_dependent
