"""Matrices that multiply rows, such that a row's result does not depend on how many rows go along.

Reuse equals a full prefill only if row 7 of 8 comes out as row 7 of 2048 does.  Libraries choose
their inner order by the number of rows, so this file pins it: see `PackedLinear`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Linear", "PackedLinear", "PlainLinear", "build_linear"]

_PACK_ROWS = {torch.bfloat16: 1, torch.float32: 2048}
"""The row count that oneDNN lays the weights out for. With these the order of sums depends on the
number of rows least (tests/model/test_linear.py holds what was measured)."""


class Linear(ABC):
    """x[n, in] -> [n, out], a fresh tensor that the caller may change."""

    out_features: int
    weight_bytes: int
    """Bytes read per call when few rows are computed."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor: ...


class PlainLinear(Linear):
    """The matrix as it is: the twin of the packed one, and what runs on a GPU."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.out_features = weight.shape[0]
        self.weight_bytes = weight.numel() * weight.element_size()
        self._weight, self._bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self._weight, self._bias)


class PackedLinear(Linear):
    """The matrix laid out once for oneDNN: no reordering per call, and a fixed order of sums.

    fp32 takes another kernel for a single row, so one row is computed as two.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.out_features = weight.shape[0]
        self.weight_bytes = weight.numel() * weight.element_size()
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(
            weight, _PACK_ROWS[weight.dtype]
        )
        self._bias = bias
        self._pad_single = weight.dtype == torch.float32

    def __call__(self, x: Tensor) -> Tensor:
        if self._pad_single and x.shape[0] == 1:
            return self._multiply(x.expand(2, -1).contiguous())[:1]
        return self._multiply(x)

    def _multiply(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")  # noqa: SLF001 the op has no public name
        return y


def build_linear(weight: Tensor, bias: Tensor | None = None, *, int8: bool = False) -> Linear:
    """The fastest kind that keeps the promise, for the device and dtype of `weight`."""
    packs = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
    if packs and weight.dtype in _PACK_ROWS:
        return PackedLinear(weight, bias)
    return PlainLinear(weight, bias)
