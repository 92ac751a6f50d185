"""The work of a tiny decoder, counted by hand."""

from __future__ import annotations

import pytest

from kdn.bench.engine.work import (
    Rates,
    Work,
    decode_bytes,
    decode_work,
    hit_work,
    prefill_flops,
    prefill_work,
)
from kdn.model.config import parse_config

CONFIG = parse_config(
    {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4,
        "intermediate_size": 3,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 2,
        "vocab_size": 10,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "eos_token_id": 2,
    }
)


def test_prefill_counts_multiplications_and_additions() -> None:
    # a token and layer: q 4x4, k and v 4x2 each, o 4x4, three matrices 4x3: 84 products
    # attention of 3 tokens: 1 + 2 + 3 scores over q's 4 columns, and as many for the values
    layer = 2 * 3 * 84 + 2 * 2 * 6 * 4
    assert prefill_flops(CONFIG, 3) == 2 * layer + 2 * 4 * 10


def test_decoding_reads_weights_once_and_all_kv() -> None:
    # of 1000 bytes 10 x 4 x 2 are an embedding that is looked up; KV: 2 layers x 2 x 1 x 2 x 2 bytes
    assert decode_bytes(CONFIG, 1000, "bfloat16", context=5, batch=3) == 920 + 3 * 5 * 16


def test_a_floor_adds_what_each_unit_of_the_machine_needs() -> None:
    work = Work(flops=4e9, exponentials=1e9, num_bytes=2e9)
    assert work.floor_s(Rates(giga_flop_s=0.5, giga_exp_s=3.0, giga_byte_s=0.25)) == 5.5


def test_a_prompt_has_an_exponential_for_each_head_and_pair_and_each_gate() -> None:
    # 2 layers: 2 heads of 1 + 2 + 3 pairs, and 3 tokens' 3 gates; KV of 3 tokens is written
    work = prefill_work(CONFIG, 1000, "bfloat16", 3)
    assert work.exponentials == 2 * (2 * 6 + 3 * 3)
    assert work.num_bytes == 920 + 3 * 16


def test_a_hit_computes_its_own_tokens_and_moves_stored_ones_unless_they_are_resident() -> None:
    moved = hit_work(CONFIG, 1000, "bfloat16", 10, 2, resident=False)
    resident = hit_work(CONFIG, 1000, "bfloat16", 10, 2, resident=True)
    assert moved.num_bytes - resident.num_bytes == 2 * 10 * 16
    assert resident.num_bytes == 920 + 12 * 16
    # two rows over ten stored columns, besides what a prompt of two tokens takes
    assert resident.flops == prefill_flops(CONFIG, 2) + 2 * (4 * 2 * 10 * 4)
    assert resident.exponentials == 2 * (2 * (20 + 3) + 2 * 3)
    assert moved.flops == resident.flops


def test_a_step_of_a_batch_reads_weights_once_and_computes_for_each() -> None:
    one, four = (decode_work(CONFIG, 1000, "bfloat16", 5, batch) for batch in (1, 4))
    assert four.flops == pytest.approx(4 * one.flops)
    assert four.exponentials == 4 * one.exponentials == 4 * 2 * (2 * 6 + 3)
    assert four.num_bytes - one.num_bytes == 3 * 5 * 16
