"""K before rotation and V, noted down as they are computed, in the layout in which they are stored."""

from __future__ import annotations

import torch
from torch import Tensor

from kdn.core import EXACT, KvShape, Recipe, RetainedKV, TokenIds
from kdn.engine.kv import extents, zeros

__all__ = ["Capture"]


class Capture:
    """KV of positions from `start` on: [layers, 2, tokens, kv heads, dim], on the CPU."""

    def __init__(self, shape: KvShape, dtype: torch.dtype, start: int, num_tokens: int) -> None:
        self.start = start
        self._size = (shape.num_layers, 2, extents(num_tokens), shape.num_kv_heads, shape.head_dim)
        self._kv = zeros(self._size, dtype)

    @property
    def stop(self) -> int:
        """The first position there is no room for."""
        return self.start + self._kv.shape[2]

    def grow(self, stop: int) -> None:
        """Room for positions up to `stop`. Keeps what is written."""
        if stop <= self.stop:
            return
        layers, two, _, heads, dim = self._size
        kv = zeros((layers, two, extents(stop - self.start), heads, dim), self._kv.dtype)
        kv[:, :, : self._kv.shape[2]] = self._kv
        self._kv = kv

    def note(self, layer: int, positions: Tensor, k: Tensor, v: Tensor) -> None:
        """Rows [rows, kv heads, dim] at `positions`; those outside the buffer are passed over."""
        first, last = int(positions[0]), int(positions[-1])
        if last - first + 1 == positions.numel() and first >= self.start and last < self.stop:
            at = slice(first - self.start, last + 1 - self.start)
            self._kv[layer, 0, at] = k
            self._kv[layer, 1, at] = v
            return
        inside = (positions >= self.start) & (positions < self.stop)
        places = positions[inside] - self.start
        self._kv[layer, 0, places] = k[inside.to(k.device)].cpu()
        self._kv[layer, 1, places] = v[inside.to(v.device)].cpu()

    def kept(
        self, token_ids: TokenIds, start: int, recipe: Recipe = EXACT, *, is_answer: bool = False
    ) -> RetainedKV:
        """What was noted for positions [start, len(token_ids)), as a view."""
        kv = self._kv[:, :, start - self.start : len(token_ids) - self.start]
        return RetainedKV(start, token_ids, kv, recipe, is_answer)
