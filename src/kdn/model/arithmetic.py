"""Does arithmetic hold its promise here? Tried once, with random numbers, where KV is about to be stored.

A row must get the same bits alone, among others and in another cut.  Libraries choose their order of
sums by shape and processor, so a shape is tried where it runs.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from kdn.model.attention import ROW_BLOCK, Attention, AttentionSlice
from kdn.model.decoder import Decoder
from kdn.model.kernels.rows import CompiledLinear
from kdn.model.linear import PackedLinear

__all__ = ["holds_bits"]

_FEW_HEADS = 2
"""So many heads of keys are tried behind many columns: libraries take another way for one alone."""
_ROWS = 130
"""A block of rows, and two of the next."""
_SMALL_LAYER_BYTES = 4 << 20
"""Trying larger layers takes up to seconds. Compiled and packed matrices were tried at every row count, so
that larger ones are believed; see `linear.py`."""
_FEW_THREADS = 2
_MANY_COLUMNS = 4096
"""A sum over so many columns may be divided where one over a few blocks is not."""


def holds_bits(decoder: Decoder, attention: Attention) -> bool:
    """True when rows of this model do not depend on what shares their pass, as far as trying tells."""
    with torch.inference_mode():
        return (
            _attention_holds(decoder, attention)
            and _long_attention_holds(decoder, attention)
            and _layer_holds(decoder)
        )


def _random(decoder: Decoder, *size: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(size))
    return torch.randn(size, generator=generator).to(decoder.device, decoder.dtype)


def _attention_holds(decoder: Decoder, attention: Attention) -> bool:
    config = decoder.config
    num_kv, dim = config.num_kv_heads, config.head_dim
    q = _random(decoder, _ROWS, config.num_heads, dim)
    k, v = _random(decoder, _ROWS, num_kv, dim), _random(decoder, _ROWS, num_kv, dim)

    def attended(*cuts: int) -> Tensor:
        """The rows in passes that end at `cuts`."""
        shape = (1, num_kv, 2 * ROW_BLOCK, dim)
        to_k, to_v = k.new_zeros(shape), k.new_zeros(shape).transpose(2, 3).contiguous()
        out = []
        for start, stop in itertools.pairwise((0, *cuts)):
            at = torch.arange(start, stop)
            part = AttentionSlice(0, stop - start, at, to_k, to_v)
            bound = attention.bind([part], *decoder.rope.tables(at.to(decoder.device)))
            turned = bound.place(0, q[start:stop].clone(), k[start:stop], v[start:stop])
            out.append(bound.attend(0, turned, None))
        return torch.cat(out)

    # Plain torch fills blocks up to powers of two: parts of 1, 2, 3, 7, 16, 32 and 64 rows try each of them.
    whole, others = attended(_ROWS), ((1, 2, 5, 129), (128,), (77,), (2, 9, 25, 57, 121))
    return all(torch.equal(whole, attended(*cuts, _ROWS)) for cuts in others)


def _long_attention_holds(decoder: Decoder, attention: Attention) -> bool:
    """The same for the rows of one block behind many columns, of a few heads.

    In fp32 no such sum was found to be divided among one or two threads: it is tried among more.
    """
    config = decoder.config
    if decoder.dtype == torch.float32 and torch.get_num_threads() <= _FEW_THREADS:
        return True
    num_kv, dim = min(config.num_kv_heads, _FEW_HEADS), config.head_dim
    group = config.num_heads // config.num_kv_heads
    q = _random(decoder, ROW_BLOCK, num_kv * group, dim)
    k, v = (
        _random(decoder, num_kv, _MANY_COLUMNS, dim),
        _random(decoder, num_kv, dim, _MANY_COLUMNS),
    )
    at = torch.arange(_MANY_COLUMNS - ROW_BLOCK, _MANY_COLUMNS)

    def attended(start: int, stop: int) -> Tensor:
        part = AttentionSlice(0, stop - start, at[start:stop], k[None], v[None])
        bound = attention.bind([part], *decoder.rope.tables(at[start:stop].to(decoder.device)))
        return bound.attend(0, q[start:stop].clone(), None)

    whole, cuts = attended(0, ROW_BLOCK), (0, 1, 3, 6, 14, 23, 40, 73, ROW_BLOCK)
    parts = [attended(start, stop) for start, stop in itertools.pairwise(cuts)]
    return torch.equal(whole, torch.cat(parts))


def _layer_holds(decoder: Decoder) -> bool:
    layer, config = decoder.layers[0], decoder.config
    weights = layer.weights
    linears = (weights.qkv, weights.o, weights.gate_up, weights.down)
    are_pinned = all(isinstance(one, CompiledLinear | PackedLinear) for one in linears)
    if are_pinned and layer.weight_bytes > _SMALL_LAYER_BYTES:
        return True
    hidden = _random(decoder, _ROWS, config.hidden_size)
    rows = _random(decoder, _ROWS, config.q_size)
    whole = (*layer.qkv(hidden), layer.finish(hidden, rows))
    for count in (1, 2, 5, 17, 33, 77, 128):
        part = (*layer.qkv(hidden[:count]), layer.finish(hidden[:count], rows[:count]))
        if not all(torch.equal(a[:count], b) for a, b in zip(whole, part, strict=True)):
            return False
    return True
