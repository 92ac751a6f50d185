"""Attention compiled for the processor at hand, where there is a compiler; optional throughout."""

from __future__ import annotations

from kdn.model.kernels.attention import KernelAttention
from kdn.model.kernels.build import Library, NoKernel, load

__all__ = ["KernelAttention", "Library", "NoKernel", "load"]
