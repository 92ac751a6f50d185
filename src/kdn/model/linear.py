"""Matrices that multiply rows, such that a row's result does not depend on how many rows go along.

Reuse equals a full prefill only if row 7 of 8 comes out as row 7 of 2048 does.  Libraries choose
their inner order by the number of rows, so this file pins it: see `PackedLinear`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "Int8Linear",
    "Linear",
    "PackedLinear",
    "PlainLinear",
    "build_linear",
    "column_sum",
    "has_onednn",
    "quantized",
    "silu_product",
]

_PACK_ROWS = {torch.bfloat16: 1, torch.float32: 2048}
"""The row count that oneDNN is told when it lays the weights out.

Any hint gives right products; these two let the order of sums depend on the number of rows least.
"""
_WIDE = 384
"""Beyond this many columns oneDNN sums some row counts in another order, so wider bf16 matrices are
cut. Up to it, no row count from 1 to 2048 was found to differ with AMX, on 1, 2, 3, 4, 8 and 16 threads;
at 512, 8 threads share the columns of a sum out. It is one number for all: KV of processes with other
numbers of threads goes by one name."""
_SUMMED = 256
"""Columns that one of several products of bf16 sums. The same limit was found as for `_WIDE`: up to 384, no
number of rows, products or threads differed, at 512 they do on a single thread, too."""
_GRAIN = 32_768
"""Elements that torch gives a thread at least (at::internal::GRAIN_SIZE)."""
_INT8_ROWS = 16
"""Up to this many rows the int8 kernel wins over widening the matrix for the call."""


class Linear(ABC):
    """x[n, in] -> [n, out], a fresh tensor that the caller may change."""

    out_features: int
    weight_bytes: int
    """Bytes read per call when few rows are computed."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor: ...

    def onto(self, base: Tensor, x: Tensor) -> Tensor:
        """base[n, out] + self(x), as a fresh tensor."""
        return self(x).add_(base)

    def wide(self, x: Tensor) -> Tensor:
        """self(x) in fp32, with as little rounding on the way as can be had."""
        return self(x).float()

    def gated(self, x: Tensor) -> Tensor:
        """silu(gate) * up, [n, out / 2], of a matrix that is a gate on top of an up projection."""
        return silu_product(*self(x).chunk(2, dim=-1))


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

    A wide bf16 matrix is a sum over column ranges, rounded to bf16 after each; fp32 takes another kernel
    for a single row, so that one row is computed as two.  Neither depends on the number of threads.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.out_features = weight.shape[0]
        self.weight_bytes = weight.numel() * weight.element_size()
        self._bias = bias
        self._pairs = weight.dtype == torch.float32
        pack = torch.ops.mkldnn._reorder_linear_weight  # noqa: SLF001 the op has no public name
        self._columns = [slice(None)] if self._pairs else _column_ranges(weight.shape[1])
        self._packed: list[Tensor] = [
            pack(weight[:, part].contiguous(), _PACK_ROWS[weight.dtype]) for part in self._columns
        ]

    def __call__(self, x: Tensor) -> Tensor:
        if self._pairs and x.shape[0] == 1:
            return self._multiply(_twice(x))[:1]
        return self._multiply(x)

    def onto(self, base: Tensor, x: Tensor) -> Tensor:
        """As the twin's, in one pass: the sum is rounded once."""
        if self._bias is not None:
            return super().onto(base, x)
        if self._pairs and x.shape[0] == 1:
            return self._accumulate(_twice(base), _twice(x), 0)[:1]
        return self._accumulate(base, x, 0)

    def _multiply(self, x: Tensor) -> Tensor:
        multiply = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001 the op has no public name
        first: Tensor = multiply(self._part(x, 0), self._packed[0], self._bias, "none", [], "")
        return self._accumulate(first, x, 1)

    def _accumulate(self, base: Tensor, x: Tensor, begin: int) -> Tensor:
        """base + the products of the column ranges from `begin` on."""
        multiply = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001 the op has no public name
        for i in range(begin, len(self._packed)):
            base = multiply.binary(self._part(x, i), base, self._packed[i], None, "add")
        return base

    def _part(self, x: Tensor, index: int) -> Tensor:
        return x if len(self._packed) == 1 else x[:, self._columns[index]]


def _twice(row: Tensor) -> Tensor:
    return row.expand(2, -1).contiguous()


def _column_ranges(num_columns: int) -> list[slice]:
    """Equal ranges, none too wide, cut at multiples of 64."""
    count = -(-num_columns // _WIDE)
    width = -(-num_columns // (count * 64)) * 64
    return [slice(start, start + width) for start in range(0, num_columns, width)]


class Int8Linear(Linear):
    """Each output's weights as 8-bit integers with one scale: half the bytes to read.

    On torch alone: few rows use the integer kernel, many the integers as exact bf16; the two agree to bf16
    rounding, not bitwise.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.out_features = weight.shape[0]
        self._weight, self._scale = quantized(weight)
        self._bias = bias
        self._kernel_rows = _INT8_ROWS if _has_int8_kernel(weight) else 0
        self.weight_bytes = self._weight.numel() + self._scale.numel() * self._scale.element_size()

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[0] <= self._kernel_rows:
            multiply = torch.ops.aten._weight_int8pack_mm  # noqa: SLF001 the op has no public name
            product: Tensor = multiply(x, self._weight, self._scale)
        else:
            product = functional.linear(x, self._weight.to(x.dtype)).mul_(self._scale)
        return product if self._bias is None else product.add_(self._bias)


def column_sum(weights: Tensor, v: Tensor) -> Tensor:
    """weights [n, rows, columns] @ v [n, columns, dim]; a row's bits do not depend on the number of rows.

    In fp32 that is so where n > 1, or among two threads at most: see `arithmetic.py`, which tries it.
    """
    if weights.dtype == torch.float32 or v.shape[1] <= _SUMMED:
        return torch.bmm(weights, v)
    pairs = zip(torch.split(weights, _SUMMED, 2), torch.split(v, _SUMMED, 1), strict=True)
    total = torch.bmm(*next(pairs)).float()
    for pair in pairs:
        total += torch.bmm(*pair)
    return total.to(weights.dtype)


def silu_product(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up for [n, width] each, in a fresh tensor; a row's bits do not depend on n.

    torch shares the elements out among threads wherever the count falls, and computes the last few of
    each part in other steps.  So parts are made to end where rows end.
    """
    num_rows, width = gate.shape
    if gate.device.type != "cpu" or num_rows <= 1:
        return functional.silu(gate).mul_(up)
    out = torch.empty_like(up, memory_format=torch.contiguous_format)
    start = 0
    while start < num_rows:
        stop = start + _rows_shared_evenly(num_rows - start, width)
        torch.mul(functional.silu(gate[start:stop]), up[start:stop], out=out[start:stop])
        start = stop
    return out


def _rows_shared_evenly(num_rows: int, width: int) -> int:
    """The most rows, up to `num_rows`, that as many threads as torch uses for them divide evenly."""
    for count in range(num_rows, 1, -1):
        threads = min(torch.get_num_threads(), -(-count * width // _GRAIN))
        if count % threads == 0:
            return count
    return 1


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [out, in] and, in the weight's dtype, a scale [out]: their product is the weight, nearly."""
    peak = weight.float().abs().amax(dim=1, keepdim=True).clamp_(min=1e-12)
    # The scale is rounded first, so that the integers fit the scale that will be used.
    scale = (peak / 127).to(weight.dtype)
    whole = (weight.float() / scale.float()).round_().clamp_(-127, 127).to(torch.int8)
    return whole, scale.squeeze(1)


def _has_int8_kernel(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16


def build_linear(weight: Tensor, bias: Tensor | None = None, *, int8: bool = False) -> Linear:
    """The fastest kind of torch's own that keeps the promise, for the device and dtype of `weight`."""
    if int8:
        return Int8Linear(weight, bias)
    if weight.device.type == "cpu" and weight.dtype in _PACK_ROWS and has_onednn():
        return PackedLinear(weight, bias)
    return PlainLinear(weight, bias)


def has_onednn() -> bool:
    """True where torch has oneDNN, which lays matrices out for the processor."""
    return bool(torch._C._has_mkldnn)  # noqa: SLF001 the public question is not typed
