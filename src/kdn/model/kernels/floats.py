"""Matrices of 4- and 8-bit weights, compiled for rows in fp32: what processors without bf16 decode with.

The twin is `GroupedLinear`.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from kdn.model.grouped import GROUP, GroupedWeight
from kdn.model.kernels.build import FloatKernels
from kdn.model.linear import Linear

__all__ = ["KernelFloatGroupedLinear"]

_SIDE = 32


class _Grouped(ctypes.Structure):
    """`Grouped` of grouped.c."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("packed", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("in_features", ctypes.c_int64),
        ("out_features", ctypes.c_int64),
        ("bits", ctypes.c_int64),
        ("threads", ctypes.c_int64),
    )


class KernelFloatGroupedLinear(Linear):
    """Weights in groups, widened where they are multiplied. Bits of a row do not depend on the other rows."""

    def __init__(
        self, library: FloatKernels, weight: GroupedWeight, bias: Tensor | None = None
    ) -> None:
        self.out_features, self._in_features = weight.q.shape
        self.weight_bytes, self._bits = weight.size_bytes, weight.bits
        self._handle = library.handle
        self._bias = None if bias is None else bias.contiguous()
        self._packed = torch.empty(self.weight_bytes, dtype=torch.uint8)
        parts = (weight.q.contiguous(), weight.scale.contiguous(), weight.low.contiguous())
        self._handle.kdn_pack_grouped(
            *(ctypes.c_void_p(part.data_ptr()) for part in parts),
            ctypes.c_int64(self.out_features),
            ctypes.c_int64(self._in_features),
            ctypes.c_int64(self._bits),
            ctypes.c_void_p(self._packed.data_ptr()),
        )

    @staticmethod
    def suits(weight: Tensor) -> bool:
        """True for what the kernel can run: whole panels of fp32 on the CPU."""
        out_features, in_features = weight.shape
        whole = out_features % _SIDE == 0 and in_features % GROUP == 0
        return whole and weight.dtype == torch.float32 and weight.device.type == "cpu"

    def __call__(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        y = torch.empty((len(x), self.out_features))
        call = _Grouped(
            x=x.data_ptr(),
            bias=None if self._bias is None else self._bias.data_ptr(),
            packed=self._packed.data_ptr(),
            y=y.data_ptr(),
            rows=len(x),
            in_features=self._in_features,
            out_features=self.out_features,
            bits=self._bits,
            threads=torch.get_num_threads(),
        )
        self._handle.kdn_multiply_grouped(ctypes.byref(call))
        return y
