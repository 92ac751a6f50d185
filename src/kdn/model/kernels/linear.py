"""The compiled twin of `PackedLinear`: bf16 on a processor with AMX."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from kdn.model.kernels.build import Kernels
from kdn.model.linear import Linear

__all__ = ["KernelLinear"]

_SIDE = 32
_PLAIN, _PAIRED, _GATED = 0, 1, 2


class _Call(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_void_p),
        ("w", ctypes.c_void_p),
        ("onto", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("tiles", ctypes.c_void_p),
        ("wide", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("in_features", ctypes.c_int64),
        ("out_features", ctypes.c_int64),
        ("x_stride", ctypes.c_int64),
        ("y_stride", ctypes.c_int64),
        ("onto_stride", ctypes.c_int64),
        ("kind", ctypes.c_int64),
        ("threads", ctypes.c_int64),
    )


class KernelLinear(Linear):
    """The matrix in the kernel's own layout. Bits of a row do not depend on the other rows.

    With `paired` the matrix is a gate on top of an up projection, and `gated` is one pass.
    """

    def __init__(
        self, library: Kernels, weight: Tensor, bias: Tensor | None = None, *, paired: bool = False
    ) -> None:
        self.out_features, self._in_features = weight.shape
        self.weight_bytes = weight.numel() * weight.element_size()
        self._handle = library.handle
        self._bias = None if bias is None else bias.float().contiguous()
        self._kind = _PAIRED if paired else _PLAIN
        weight = weight.contiguous()
        self._packed = torch.empty_like(weight)
        self._handle.kdn_pack(
            ctypes.c_void_p(weight.data_ptr()),
            ctypes.c_int64(self.out_features),
            ctypes.c_int64(self._in_features),
            ctypes.c_int64(self._kind),
            ctypes.c_void_p(self._packed.data_ptr()),
        )

    @staticmethod
    def suits(library: Kernels, weight: Tensor, *, paired: bool) -> bool:
        """True for what the kernel can run: whole tiles of bf16 on a processor that has them."""
        out_features, in_features = weight.shape
        whole = in_features % _SIDE == 0 and out_features % (2 * _SIDE if paired else _SIDE) == 0
        return (
            library.has_amx
            and weight.dtype == torch.bfloat16
            and weight.device.type == "cpu"
            and whole
        )

    def __call__(self, x: Tensor) -> Tensor:
        return self._run(x, self._kind)

    def onto(self, base: Tensor, x: Tensor) -> Tensor:
        """As the twin's, in one pass: the sum is rounded once."""
        return self._run(x, self._kind, base)

    def gated(self, x: Tensor) -> Tensor:
        """As the twin's, in one pass: neither gate nor up is rounded on the way."""
        return self._run(x, _GATED)

    def wide(self, x: Tensor) -> Tensor:
        """As the twin's, but never rounded to bf16."""
        return self._run(x, self._kind, dtype=torch.float32)

    def _run(
        self, x: Tensor, kind: int, onto: Tensor | None = None, dtype: torch.dtype = torch.bfloat16
    ) -> Tensor:
        x = x if x.stride(1) == 1 else x.contiguous()
        rows = x.shape[0]
        width = self.out_features // 2 if kind == _GATED else self.out_features
        y = torch.empty((rows, width), dtype=dtype)
        tiles = torch.empty(-(-rows // _SIDE) * _SIDE * self._in_features, dtype=x.dtype)
        call = _Call(
            x=x.data_ptr(),
            w=self._packed.data_ptr(),
            y=y.data_ptr(),
            wide=y.data_ptr() if dtype == torch.float32 else None,
            tiles=tiles.data_ptr(),
            rows=rows,
            in_features=self._in_features,
            out_features=self.out_features,
            x_stride=x.stride(0),
            y_stride=width,
            kind=kind,
            threads=torch.get_num_threads(),
        )
        if self._bias is not None:
            call.bias = self._bias.data_ptr()
        if onto is not None:
            onto = onto if onto.stride(1) == 1 else onto.contiguous()
            call.onto, call.onto_stride = onto.data_ptr(), onto.stride(0)
        self._handle.kdn_linear(ctypes.byref(call))
        return y
