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

__all__ = ["holds_bits"]

_ROWS = 130
"""A block of rows, and two of the next."""
_SMALL_LAYER_BYTES = 4 << 20
"""Matrices of larger layers were tried at every row count, and would take seconds; see `linear.py`."""


def holds_bits(decoder: Decoder, attention: Attention) -> bool:
    """True when rows of this model do not depend on what shares their pass, as far as trying tells."""
    with torch.inference_mode():
        return _attention_holds(decoder, attention) and _layer_holds(decoder)


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


def _layer_holds(decoder: Decoder) -> bool:
    layer, config = decoder.layers[0], decoder.config
    if layer.weight_bytes > _SMALL_LAYER_BYTES:
        return True
    hidden = _random(decoder, _ROWS, config.hidden_size)
    rows = _random(decoder, _ROWS, config.q_size)
    whole = (*layer.qkv(hidden), layer.finish(hidden, rows))
    for count in (1, 2, 5, 17, 33, 77, 128):
        part = (*layer.qkv(hidden[:count]), layer.finish(hidden[:count], rows[:count]))
        if not all(torch.equal(a[:count], b) for a, b in zip(whole, part, strict=True)):
            return False
    return True
