"""The dullest forward pass: the decoder with plain masked softmax attention in fp32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdn.model import AdapterRun, Decoder, LoraAdapter
from kdn.model.rope import rotate


@torch.inference_mode()
def forward(
    decoder: Decoder, token_ids: Sequence[int], adapter: LoraAdapter | None = None
) -> Tensor:
    """Logits [n, vocab] of every position of one sequence."""
    n = len(token_ids)
    runs = [AdapterRun(0, n, adapter)] if adapter else []
    hidden = decoder.embed(torch.tensor(token_ids))
    cos, sin = decoder.rope.tables(torch.arange(n))
    for layer in decoder.layers:
        q, k, v = layer.qkv(hidden, runs)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        hidden = layer.finish(hidden, attend(q, k, v, layer.window).flatten(1), runs)
    return decoder.logits(hidden)


def attend(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """q[n, Hq, D], k and v[n, Hkv, D] -> [n, Hq, D]: each row sees itself and those before it."""
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1).float(), v.repeat_interleave(repeat, 1).float()
    scores = torch.einsum("qhd,khd->hqk", q.float(), k) / q.shape[2] ** 0.5
    behind = torch.arange(len(q)).unsqueeze(1) - torch.arange(len(k))
    hidden = (behind < 0) | (behind >= (window or len(k)))
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v).to(q.dtype)
