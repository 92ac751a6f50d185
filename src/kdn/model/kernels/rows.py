"""What is computed of every row by itself, compiled: matrices and norms, on the CPU.

The twins are `PackedLinear`, `Int8Linear`, `GroupedLinear` and `RmsNorm`.
"""

from __future__ import annotations

import ctypes
from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from kdn.model.grouped import GROUP, GroupedWeight
from kdn.model.kernels.build import Kernels
from kdn.model.linear import Linear, quantized
from kdn.model.norm import RmsNorm

__all__ = [
    "SUMS",
    "CompiledLinear",
    "KernelFloatLinear",
    "KernelGroupedLinear",
    "KernelLinear",
    "KernelNorm",
    "LinearCall",
]

_SIDE = 32
_LANES = 16
_PLAIN, _PAIRED, _GATED = 0, 1, 2
_WHOLE, _BYTES = 0, 1
"""Forms of weights; after them come those of four bits times as many as is added."""
SUMS = 2
"""Numbers that are noted of a row's group of inputs: their sum and, of fp32 rows, their step."""


class LinearCall(ctypes.Structure):
    """`Linear` of linear.h."""

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
        ("use_amx", ctypes.c_int64),
    )


class CompiledLinear(Linear):
    """What the compiled matrices have in common: how a call is made."""

    _in_features: int
    _kind: int
    _bias: Tensor | None
    """fp32."""

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
        self, x: Tensor, kind: int, onto: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        x = x if x.stride(1) == 1 else x.contiguous()
        rows = x.shape[0]
        width = self.out_features // 2 if kind == _GATED else self.out_features
        y = torch.empty((rows, width), dtype=dtype or x.dtype)
        call = LinearCall(
            x=x.data_ptr(),
            y=y.data_ptr(),
            wide=y.data_ptr() if dtype == torch.float32 else None,
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
        self._add_weights(call)
        self._multiply(call, x)
        return y

    def described(self) -> LinearCall:
        """A call with the weights and nothing else, for kernels that make it themselves."""
        call = LinearCall(in_features=self._in_features, out_features=self.out_features)
        if self._bias is not None:
            call.bias = self._bias.data_ptr()
        self._add_weights(call)
        return call

    @property
    @abstractmethod
    def form(self) -> int:
        """As what the weights are kept, in the numbers of step.c."""

    @abstractmethod
    def _add_weights(self, call: LinearCall) -> None:
        """Enter the weights."""

    @abstractmethod
    def _multiply(self, call: LinearCall, x: Tensor) -> None:
        """Add what room they need to a call with the weights, and make it."""


class KernelLinear(CompiledLinear):
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
        self._handle, self._use_amx = library.handle, library.has_amx
        self._bias = None if bias is None else bias.float().contiguous()
        self._kind = _PAIRED if paired else _PLAIN
        self._scale: Tensor | None = None
        if int8:
            whole, scale = quantized(weight)
            self._scale = scale.float().contiguous()
            self._packed = self._pack(self._handle.kdn_pack8, whole.contiguous(), self._use_amx)
        else:
            self._packed = self._pack(self._handle.kdn_pack, weight.contiguous())
        self.weight_bytes = self._packed.numel() * self._packed.element_size()

    def _pack(self, pack: Callable[..., object], weight: Tensor, *more: int) -> Tensor:
        packed = torch.empty_like(weight)
        pack(
            ctypes.c_void_p(weight.data_ptr()),
            ctypes.c_int64(self.out_features),
            ctypes.c_int64(self._in_features),
            ctypes.c_int64(self._kind),
            ctypes.c_void_p(packed.data_ptr()),
            *map(ctypes.c_int64, more),
        )
        return packed

    @staticmethod
    def suits(weight: Tensor, *, paired: bool, int8: bool = False) -> bool:
        """True for what the kernel can run: whole panels of bf16 on the CPU."""
        whole = _is_whole(weight, 2 * _SIDE if int8 else _SIDE, paired=paired)
        return whole and weight.dtype == torch.bfloat16

    @property
    def form(self) -> int:
        return _WHOLE if self._scale is None else _BYTES

    def _add_weights(self, call: LinearCall) -> None:
        call.use_amx = self._use_amx
        if self._scale is None:
            call.w = self._packed.data_ptr()
        else:
            call.w8, call.scale = self._packed.data_ptr(), self._scale.data_ptr()

    def _multiply(self, call: LinearCall, x: Tensor) -> None:
        if self._scale is None and not self._use_amx:
            self._handle.kdn_linear(ctypes.byref(call))
            return
        tiles = torch.empty(-(-x.shape[0] // _SIDE) * _SIDE * self._in_features, dtype=x.dtype)
        call.tiles = tiles.data_ptr()
        if self._scale is None:
            self._handle.kdn_linear(ctypes.byref(call))
            return
        row_scale = torch.empty(x.shape[0])
        call.row_scale = row_scale.data_ptr()
        self._handle.kdn_linear8(ctypes.byref(call))


class _NibblesLinear(CompiledLinear):
    """Weights of four bits times so many, multiplied as they lie."""

    _handle: ctypes.CDLL
    _packed: Tensor
    _nibbles: ctypes.c_int64

    @property
    def form(self) -> int:
        return _BYTES + int(self._nibbles.value)

    def _add_weights(self, call: LinearCall) -> None:
        call.w8 = self._packed.data_ptr()

    def _multiply(self, call: LinearCall, x: Tensor) -> None:
        sums = torch.empty(x.shape[0] * (self._in_features // GROUP) * SUMS)
        call.row_scale = sums.data_ptr()
        rounded = torch.empty(x.shape[0] * self._in_features, dtype=torch.int16)
        call.tiles = rounded.data_ptr()
        self._handle.kdn_linear4(ctypes.byref(call), self._nibbles)


class KernelGroupedLinear(_NibblesLinear):
    """4- or 8-bit weights in groups. Bits of a row do not depend on the other rows."""

    def __init__(
        self,
        library: Kernels,
        weight: GroupedWeight,
        bias: Tensor | None = None,
        *,
        paired: bool = False,
    ) -> None:
        self.out_features, self._in_features = weight.q.shape
        self._handle = library.handle
        self._bias = None if bias is None else bias.float().contiguous()
        self._kind = _PAIRED if paired else _PLAIN
        self._nibbles = ctypes.c_int64(weight.bits // 4)
        q, scale, low = weight.q.contiguous(), weight.scale.contiguous(), weight.low.contiguous()
        self.weight_bytes = weight.size_bytes
        self._packed = torch.empty(self.weight_bytes, dtype=torch.uint8)
        self._handle.kdn_pack4(
            ctypes.c_void_p(q.data_ptr()),
            ctypes.c_void_p(scale.data_ptr()),
            ctypes.c_void_p(low.data_ptr()),
            ctypes.c_int64(self.out_features),
            ctypes.c_int64(self._in_features),
            ctypes.c_int64(self._kind),
            self._nibbles,
            ctypes.c_void_p(self._packed.data_ptr()),
        )

    @staticmethod
    def suits(library: Kernels, weight: Tensor, *, paired: bool) -> bool:
        """True for what the library can run: whole panels in its dtype on the CPU."""
        return weight.dtype == library.dtype and _is_whole(weight, GROUP, paired=paired)


class KernelFloatLinear(_NibblesLinear):
    """An fp32 matrix as it is, in half the bytes where all its numbers are bf16: the bits are the same.

    Bits of a row do not depend on the other rows.
    """

    def __init__(
        self, library: Kernels, weight: Tensor, bias: Tensor | None = None, *, paired: bool = False
    ) -> None:
        self.out_features, self._in_features = weight.shape
        self._handle = library.handle
        self._bias = None if bias is None else bias.contiguous()
        self._kind = _PAIRED if paired else _PLAIN
        weight, bits = weight.contiguous(), 16 if _is_bf16(weight) else 32
        self._nibbles = ctypes.c_int64(bits // 4)
        self.weight_bytes = weight.numel() * bits // 8
        self._packed = torch.empty(self.weight_bytes, dtype=torch.uint8)
        self._handle.kdn_pack(
            ctypes.c_void_p(weight.data_ptr()),
            ctypes.c_int64(self.out_features),
            ctypes.c_int64(self._in_features),
            ctypes.c_int64(self._kind),
            ctypes.c_void_p(self._packed.data_ptr()),
            ctypes.c_int64(bits),
        )

    @staticmethod
    def suits(library: Kernels, weight: Tensor, *, paired: bool) -> bool:
        """True for whole panels of fp32 on the CPU, where the library is quicker than torch."""
        wanted = library.multiplies_floats and weight.dtype == torch.float32
        return wanted and _is_whole(weight, GROUP, paired=paired)


class KernelNorm(RmsNorm):
    """x[..., size] -> the same shape and dtype: one pass instead of six."""

    def __init__(self, library: Kernels, weight: Tensor, eps: float) -> None:
        super().__init__(weight, eps)
        self._handle = library.handle
        self._scale = weight.float().contiguous()
        self._size = weight.shape[0]
        self._eps_value = ctypes.c_float(eps)

    @property
    def described(self) -> tuple[int, float]:
        """The address of the weights, in fp32, and epsilon."""
        return self._scale.data_ptr(), float(self._eps_value.value)

    @staticmethod
    def suits(library: Kernels, weight: Tensor) -> bool:
        """True for what the library can run."""
        whole = weight.shape[0] % _LANES == 0
        return weight.dtype == library.dtype and weight.device.type == "cpu" and whole

    def __call__(self, x: Tensor) -> Tensor:
        rows = x if x.dim() == 2 and x.stride(1) == 1 else x.reshape(-1, self._size)
        y = torch.empty(x.shape, dtype=x.dtype)
        self._handle.kdn_norm(
            ctypes.c_void_p(rows.data_ptr()),
            ctypes.c_int64(rows.stride(0)),
            ctypes.c_void_p(self._scale.data_ptr()),
            self._eps_value,
            ctypes.c_int64(rows.shape[0]),
            ctypes.c_int64(self._size),
            ctypes.c_void_p(y.data_ptr()),
            ctypes.c_int64(torch.get_num_threads()),
        )
        return y


def _is_bf16(weight: Tensor) -> bool:
    """True where every number would survive being rounded to bf16."""
    return all(torch.equal(rows.bfloat16().float(), rows) for rows in torch.split(weight, 1024))


def _is_whole(weight: Tensor, step: int, *, paired: bool) -> bool:
    """True on the CPU for sides that are whole panels and steps."""
    out_features, in_features = weight.shape
    return (
        weight.device.type == "cpu"
        and in_features % step == 0
        and out_features % (2 * _SIDE if paired else _SIDE) == 0
    )
