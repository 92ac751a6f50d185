"""Attention, matrices and norms compiled for this processor, where there is a compiler.

It trades in tensors, as the plain twins in `kdn.model` do, which are the reference.  Only `kdn.model` and
the room that builds it (`kdn.api`) import it.  Start with `build.py`, then `attention.c`.
"""

from __future__ import annotations

from kdn.model.kernels.attention import KernelAttention
from kdn.model.kernels.build import Kernels, NoKernel, load, load_floats
from kdn.model.kernels.rows import KernelFloatLinear, KernelGroupedLinear, KernelLinear, KernelNorm
from kdn.model.kernels.step import KernelLayers

__all__ = [
    "KernelAttention",
    "KernelFloatLinear",
    "KernelGroupedLinear",
    "KernelLayers",
    "KernelLinear",
    "KernelNorm",
    "Kernels",
    "NoKernel",
    "load",
    "load_floats",
]
