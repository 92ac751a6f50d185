"""Attention and matrices compiled for the processor at hand, where there is a compiler; optional."""

from __future__ import annotations

from kdn.model.kernels.attention import KernelAttention
from kdn.model.kernels.build import Kernels, NoKernel, load
from kdn.model.kernels.linear import KernelLinear
from kdn.model.kernels.norm import KernelNorm

__all__ = ["KernelAttention", "KernelLinear", "KernelNorm", "Kernels", "NoKernel", "load"]
