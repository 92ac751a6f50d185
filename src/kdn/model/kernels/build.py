"""Compiles the kernels for this processor, once, if there is a C compiler; else there is none.

The result is cached by source, compiler and processor.  Nothing is downloaded and nothing is linked
but the OpenMP runtime, which is the one torch has loaded already, so that both share one pool of
threads.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Kernels", "NoKernel", "load"]

_FOLDER = Path(__file__).parent
_SOURCES = tuple(_FOLDER / name for name in ("attention.c", "linear.c", "linear8.c", "norm.c"))
_HEADERS = tuple(_FOLDER / name for name in ("common.h", "linear.h"))
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
    if "avx512_bf16" not in _cpu_flags():
        raise NoKernel("the processor has no AVX512-BF16")
    name = _fingerprint()
    path = cache_dir / f"kernels-{name}.so"
    if not path.exists():
        _compile(path)
    try:
        handle = ctypes.CDLL(str(path))
    except OSError as error:
        raise NoKernel(f"{path.name} cannot be loaded: {error}") from error
    level = int(handle.kdn_level())
    if level == 0:
        raise NoKernel("the processor refuses AVX512-BF16")
    return Kernels(handle, name, has_amx=level == _AMX)


def _cpu_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return next(
        (frozenset(x.split(":")[1].split()) for x in lines if x.startswith("flags")), frozenset()
    )


def _compiler() -> str:
    found = next(
        (c for c in (os.environ.get("CC"), "cc", "gcc", "clang") if c and shutil.which(c)), None
    )
    if found is None:
        raise NoKernel("no C compiler is installed (cc, gcc or clang)")
    return found


def _fingerprint() -> str:
    parts = (
        *(p.read_bytes() for p in (*_SOURCES, *_HEADERS)),
        _compiler().encode(),
        " ".join(sorted(_cpu_flags())).encode(),
    )
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _compile(path: Path) -> None:
    """Write to a temporary name, then rename: two processes may compile at once."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            command = [_compiler(), *_FLAGS, *map(str, _SOURCES), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
            if done.returncode:
                raise NoKernel(f"{command[0]} cannot compile the kernel: {done.stderr[-400:]}")
            made.rename(path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoKernel(f"the kernel cannot be compiled: {error}") from error
