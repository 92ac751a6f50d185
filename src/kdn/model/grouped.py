"""Matrices of 4- or 8-bit weights with a scale and a low end for every 32 inputs: a third of bf16's bytes.

One weight stands for `q * scale + low`, which is GGUF's Q4_1 with its fp16 numbers, so that a file of that
kind (the packaged model is one) loses nothing but the rounding of its unpacked copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from kdn.model.linear import Linear

__all__ = ["GROUP", "GroupedLinear", "GroupedWeight", "group_weights"]

GROUP = 32
"""Inputs that share a scale and a low end."""
_SHRINKS = (1.0, 0.96, 0.92, 0.88, 0.84)
"""Spans that are tried, as shares of the one from the least weight to the greatest."""
_ROWS_AT_ONCE = 512
"""So many that what is tried stays in a processor's cache."""


@dataclass(frozen=True)
class GroupedWeight:
    """A matrix [out, in] as `q * scale + low`."""

    q: Tensor
    """uint8 [out, in], below 2 ** bits."""
    scale: Tensor
    """fp16 [out, in / GROUP]."""
    low: Tensor
    """fp16 [out, in / GROUP]."""
    bits: int

    @property
    def size_bytes(self) -> int:
        """Packed, as a kernel reads it."""
        return self.q.numel() * self.bits // 8 + self.scale.numel() * 4

    def widened(self, dtype: torch.dtype) -> Tensor:
        """The matrix in `dtype`, rounded once."""
        out_features, in_features = self.q.shape
        whole = self.q.float().view(out_features, -1, GROUP)
        whole = torch.addcmul(self.low.float()[..., None], whole, self.scale.float()[..., None])
        return whole.view(out_features, in_features).to(dtype)


def group_weights(weight: Tensor, bits: int) -> GroupedWeight:
    """`weight`[out, in], `in` a multiple of GROUP, in groups; each span is the best of five.

    The best has the least sum of squared errors; a narrower span cuts off the outermost weights and
    brings the others nearer.
    """
    parts = [_group_some(rows, bits) for rows in torch.split(weight, _ROWS_AT_ONCE)]
    q, scale, low = (torch.cat(part) for part in zip(*parts, strict=True))
    return GroupedWeight(q, scale, low, bits)


def _group_some(weight: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    top = (1 << bits) - 1
    groups = weight.float().view(len(weight), -1, GROUP)
    least, most = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    middle, span = (most + least) / 2, most - least
    best = torch.full_like(least, torch.inf)
    scale, low = torch.zeros_like(least), torch.zeros_like(least)
    for shrink in _SHRINKS:
        begin = (middle - span * (shrink / 2)).half().float()
        step = (span * (shrink / top)).half().float()
        error = (_steps(groups, step, begin, top) * step + begin - groups).square_()
        total = error.sum(-1, keepdim=True)
        better = total < best
        best = torch.where(better, total, best)
        scale, low = torch.where(better, step, scale), torch.where(better, begin, low)
    q = _steps(groups, scale, low, top).to(torch.uint8)
    return q.view(weight.shape), scale.squeeze(-1).half(), low.squeeze(-1).half()


def _steps(groups: Tensor, scale: Tensor, low: Tensor, top: int) -> Tensor:
    inverse = torch.where(scale == 0, 0.0, 1.0 / scale)
    return (groups - low).mul_(inverse).round_().clamp_(0, top)


class GroupedLinear(Linear):
    """On torch alone: the matrix is widened for each call. The twin of the compiled one."""

    def __init__(self, weight: GroupedWeight, bias: Tensor | None = None) -> None:
        self.out_features = weight.q.shape[0]
        self.weight_bytes = weight.size_bytes
        self._weight, self._bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self._weight.widened(x.dtype), self._bias)
