"""How much a decoder must compute and read: what measured times are held against."""

from __future__ import annotations

from kdn.model import ModelConfig

__all__ = ["decode_bytes", "prefill_flops"]


def prefill_flops(config: ModelConfig, num_tokens: int) -> float:
    """Multiplications and additions of a whole prefill that wants the last position's logits.

    Of attention only what a causal mask leaves is counted: work on masked scores is not useful.
    """
    queries = config.num_heads * config.head_dim
    keys = config.num_kv_heads * config.head_dim
    linear = config.hidden_size * (2 * queries + 2 * keys + 3 * config.intermediate_size)
    causal_pairs = num_tokens * (num_tokens + 1) / 2
    layer = 2 * num_tokens * linear + 2 * 2 * causal_pairs * queries
    return config.num_layers * layer + 2 * config.hidden_size * config.vocab_size


def decode_bytes(
    config: ModelConfig, weight_bytes: int, dtype: str, context: int, batch: int
) -> float:
    """Bytes that one decoding step must read: the weights once, every sequence's KV.

    An input embedding that is not also the head is looked up, not read.
    """
    shape = config.kv_shape(dtype)
    lookup = 0 if config.tied_head else config.vocab_size * config.hidden_size * shape.value_bytes
    return weight_bytes - lookup + batch * context * shape.token_bytes
