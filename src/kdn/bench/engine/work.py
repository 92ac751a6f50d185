"""How much a decoder must compute and read: what measured times are held against."""

from __future__ import annotations

from dataclasses import dataclass

from kdn.model import ModelConfig

__all__ = [
    "Rates",
    "Work",
    "decode_bytes",
    "decode_work",
    "hit_work",
    "prefill_flops",
    "prefill_work",
]


@dataclass(frozen=True)
class Rates:
    """What the machine needs, by measurement, in seconds."""

    giga_flop_s: float
    """For 1e9 operations of a matrix product."""
    giga_exp_s: float
    """For 1e9 exponentials of values in a cache."""
    giga_byte_s: float
    """To read, or to write, 1e9 bytes of memory."""


@dataclass(frozen=True)
class Work:
    """What a program cannot do without, however it is written."""

    flops: float
    exponentials: float
    num_bytes: float

    def floor_s(self, rates: Rates) -> float:
        """Seconds, if nothing overlaps: three machines beside each other could be quicker."""
        together = self.flops * rates.giga_flop_s + self.exponentials * rates.giga_exp_s
        return (together + self.num_bytes * rates.giga_byte_s) / 1e9


def prefill_work(config: ModelConfig, weight_bytes: int, dtype: str, num_tokens: int) -> Work:
    """A prompt to its first token: weights are read once, KV is written."""
    return Work(
        prefill_flops(config, num_tokens),
        _exponentials(config, num_tokens, num_tokens * (num_tokens + 1) / 2),
        decode_bytes(config, weight_bytes, dtype, num_tokens, 1),
    )


def hit_work(
    config: ModelConfig, weight_bytes: int, dtype: str, stored: int, new: int, *, resident: bool
) -> Work:
    """`new` tokens behind `stored` ones: stored KV is read, and before that, unless it is resident, read
    where it is stored and written to its place."""
    pairs = new * stored + new * (new + 1) / 2
    queries = config.num_heads * config.head_dim
    alone = prefill_flops(config, new)
    flops = alone + config.num_layers * 4 * new * stored * queries
    placed = 0 if resident else 2 * stored * config.kv_shape(dtype).token_bytes
    read = decode_bytes(config, weight_bytes, dtype, stored + new, 1)
    return Work(flops, _exponentials(config, new, pairs), read + placed)


def decode_work(
    config: ModelConfig, weight_bytes: int, dtype: str, context: int, batch: int
) -> Work:
    """One step of a batch, every sequence behind `context` tokens."""
    queries = config.num_heads * config.head_dim
    own = prefill_flops(config, 1) + config.num_layers * 4 * context * queries
    return Work(
        batch * own,
        batch * _exponentials(config, 1, context + 1),
        decode_bytes(config, weight_bytes, dtype, context, batch),
    )


def _exponentials(config: ModelConfig, rows: int, pairs: float) -> float:
    """Of softmax, one a head and pair of tokens, and of the gates."""
    return config.num_layers * (config.num_heads * pairs + rows * config.intermediate_size)


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
