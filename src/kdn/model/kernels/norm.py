"""The compiled twin of `RmsNorm`: bf16 rows on the CPU, one pass instead of six."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from kdn.model.kernels.build import Kernels
from kdn.model.norm import RmsNorm

__all__ = ["KernelNorm"]

_LANES = 16


class KernelNorm(RmsNorm):
    """x[..., size] -> the same shape, bf16."""

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
    def suits(weight: Tensor) -> bool:
        """True for what the kernel can run."""
        whole = weight.shape[0] % _LANES == 0
        return weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and whole

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
