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

from kdn.machine.compiler import NoCompiler, compile_shared, cpu_flags, source_name

__all__ = ["Kernels", "NoKernel", "load"]

_FOLDER = Path(__file__).parent
_SOURCES = tuple(
    _FOLDER / name
    for name in ("attention.c", "linear.c", "linear4.c", "linear8.c", "norm.c", "step.c")
)
_HEADERS = tuple(_FOLDER / name for name in ("attention.h", "common.h", "few.h", "linear.h"))
_FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fopenmp", "-shared", "-fPIC")


_AMX = 2
"""What the level function says where there are tile registers; 1 is AVX512-BF16 only."""


class NoKernel(Exception):
    """Why there is no compiled kernel here."""


@dataclass(frozen=True)
class Kernels:
    """The loaded kernels."""

    handle: ctypes.CDLL
    name: str
    """Changes with whatever may change the bits of a result: source, compiler, processor."""
    has_amx: bool


def load(cache_dir: Path) -> Kernels:
    """The kernel for this processor, compiled on first use. Raises NoKernel."""
    if platform.machine() not in {"x86_64", "AMD64"} or platform.system() != "Linux":
        raise NoKernel(
            f"the kernel is for Linux on x86-64, not {platform.system()} {platform.machine()}"
        )
    if "avx512_bf16" not in cpu_flags():
        raise NoKernel("the processor has no AVX512-BF16")
    try:
        name = source_name((*_SOURCES, *_HEADERS))
        path = cache_dir / f"kernels-{name}.so"
        if not path.exists():
            compile_shared(_SOURCES, _FLAGS, path)
    except NoCompiler as error:
        raise NoKernel(str(error)) from error
    try:
        handle = ctypes.CDLL(str(path))
    except OSError as error:
        raise NoKernel(f"{path.name} cannot be loaded: {error}") from error
    level = int(handle.kdn_level())
    if level == 0:
        raise NoKernel("the processor refuses AVX512-BF16")
    return Kernels(handle, name, has_amx=level == _AMX)
