"""Compiles the kernels for this processor, once, if there is a C compiler; else there is none.

The result is cached by source, compiler and processor.  Nothing is downloaded and nothing is linked
but the OpenMP runtime, which is the one torch has loaded already, so that both share one pool of
threads.
"""

from __future__ import annotations

import ctypes
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from kdn.machine.compiler import NoCompiler, compile_shared, cpu_flags, source_name

__all__ = ["Kernels", "NoKernel", "load", "load_floats"]

_FOLDER = Path(__file__).parent
_SOURCES = tuple(
    _FOLDER / name
    for name in ("attention.c", "linear.c", "linear4.c", "linear8.c", "norm.c", "step.c")
)
_SHARED = tuple(_FOLDER / name for name in ("attention.h", "columns.h", "place.h", "real.h"))
_HEADERS = (*_SHARED, *(_FOLDER / name for name in ("common.h", "few.h", "linear.h")))
_FLOAT_SOURCES = tuple(_FOLDER / name for name in ("floats.c", "grouped.c", "step.c", "whole.c"))
_FLOAT_HEADERS = (*_SHARED, _FOLDER / "floats.h", _FOLDER / "panels.h")
_FLOAT_NEEDS = frozenset({"avx2", "fma", "f16c"})
_FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fopenmp", "-shared", "-fPIC")


_loaded: dict[str, ctypes.CDLL] = {}
"""Libraries of this process by file name."""
_AMX = 2
"""What the level function says where there are tile registers; 1 is AVX512-BF16 only."""


class NoKernel(Exception):
    """Why there is no compiled kernel here."""


@dataclass(frozen=True)
class Kernels:
    """The loaded kernels."""

    handle: ctypes.CDLL
    name: str
    """Changes with whatever may change the bits of a result: source, compiler, processor, and whether
    this process may use its tile registers, which sum pairs in another order than vectors do."""
    dtype: torch.dtype
    """Of rows, K and V."""
    has_amx: bool = False
    multiplies_floats: bool = False
    """Is it quicker than torch with whole fp32 matrices, too? Not where torch has AVX512 for them."""


def load(cache_dir: Path) -> Kernels:
    """The kernels of bf16 for this processor, compiled on first use. Raises NoKernel."""
    _refuse_other_machines()
    if "avx512_bf16" not in cpu_flags():
        raise NoKernel("the processor has no AVX512-BF16")
    handle, name = _compiled(_SOURCES, _HEADERS, (), cache_dir / "kernels")
    level = int(handle.kdn_level())
    if level == 0:
        raise NoKernel("the processor refuses AVX512-BF16")
    return Kernels(handle, f"{name}-{level}", torch.bfloat16, has_amx=level == _AMX)


def load_floats(cache_dir: Path) -> Kernels:
    """The kernels of fp32 for this processor, compiled on first use. Raises NoKernel."""
    _refuse_other_machines()
    missing = sorted(_FLOAT_NEEDS - cpu_flags())
    if missing:
        raise NoKernel(f"the processor has no {', '.join(missing).upper()}")
    handle, name = _compiled(
        _FLOAT_SOURCES, _FLOAT_HEADERS, ("-DKDN_FLOATS",), cache_dir / "floats"
    )
    return Kernels(handle, name, torch.float32, multiplies_floats="avx512f" not in cpu_flags())


def _refuse_other_machines() -> None:
    if platform.machine() not in {"x86_64", "AMD64"} or platform.system() != "Linux":
        raise NoKernel(
            f"the kernel is for Linux on x86-64, not {platform.system()} {platform.machine()}"
        )


def _compiled(
    sources: tuple[Path, ...], headers: tuple[Path, ...], flags: tuple[str, ...], stem: Path
) -> tuple[ctypes.CDLL, str]:
    """The library of these sources, which lies beside `stem`, and its name.

    What the process has loaded serves any other home, too: equal names are equal code.
    """
    try:
        name = source_name((*sources, *headers))
        path = stem.with_name(f"{stem.name}-{name}.so")
        if path.name in _loaded:
            return _loaded[path.name], name
        if not path.exists():
            compile_shared(sources, (*_FLAGS, *flags), path)
    except NoCompiler as error:
        raise NoKernel(str(error)) from error
    try:
        return _loaded.setdefault(path.name, ctypes.CDLL(str(path))), name
    except OSError as error:
        raise NoKernel(f"{path.name} cannot be loaded: {error}") from error
