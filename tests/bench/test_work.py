"""The work of a tiny decoder, counted by hand."""

from __future__ import annotations

from kdn.bench.engine.work import decode_bytes, prefill_flops
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
