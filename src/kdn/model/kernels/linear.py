"""The compiled twin of `PackedLinear` and `Int8Linear`: bf16 on a processor with AMX."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

from kdn.model.kernels.build import Kernels
from kdn.model.linear import Linear, quantized

__all__ = ["KernelLinear"]

_SIDE = 32
_PLAIN, _PAIRED, _GATED = 0, 1, 2


class _Call(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_void_p),
        ("w", ctypes.c_void_p),
        ("onto", ctypes.c_void_p),
        ("w8", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("row_scale", ctypes.c_void_p),
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

    With `paired` the matrix is a gate on top of an up projection, and `gated` is one pass.  With
    `int8` the weights are kept as `quantized` makes them, at half the bytes.
    """

    def __init__(
        self,
        library: Kernels,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        paired: bool = False,
        int8: bool = False,
    ) -> None:
        self.out_features, self._in_features = weight.shape
        self._handle = library.handle
        self._bias = None if bias is None else bias.float().contiguous()
        self._kind = _PAIRED if paired else _PLAIN
        self._scale: Tensor | None = None
        if int8:
            whole, scale = quantized(weight)
            self._scale = scale.float().contiguous()
            self._packed = self._pack(self._handle.kdn_pack8, whole.contiguous())
        else:
            self._packed = self._pack(self._handle.kdn_pack, weight.contiguous())
        self.weight_bytes = self._packed.numel() * self._packed.element_size()

    def _pack(self, pack: Callable[..., object], weight: Tensor) -> Tensor:
        packed = torch.empty_like(weight)
        pack(
            ctypes.c_void_p(weight.data_ptr()),
            ctypes.c_int64(self.out_features),
            ctypes.c_int64(self._in_features),
            ctypes.c_int64(self._kind),
            ctypes.c_void_p(packed.data_ptr()),
        )
        return packed

    @staticmethod
    def suits(library: Kernels, weight: Tensor, *, paired: bool, int8: bool = False) -> bool:
        """True for what the kernel can run: whole tiles of bf16 on a processor that has them."""
        out_features, in_features = weight.shape
        step = 2 * _SIDE if int8 else _SIDE
        whole = in_features % step == 0 and out_features % (2 * _SIDE if paired else _SIDE) == 0
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
        multiply = self._handle.kdn_linear
        if self._scale is None:
            call.w = self._packed.data_ptr()
        else:
            multiply = self._handle.kdn_linear8
            call.w8, call.scale = self._packed.data_ptr(), self._scale.data_ptr()
            row_scale = torch.empty(rows)
            call.row_scale = row_scale.data_ptr()
        if self._bias is not None:
            call.bias = self._bias.data_ptr()
        if onto is not None:
            onto = onto if onto.stride(1) == 1 else onto.contiguous()
            call.onto, call.onto_stride = onto.data_ptr(), onto.stride(0)
        multiply(ctypes.byref(call))
        return y
