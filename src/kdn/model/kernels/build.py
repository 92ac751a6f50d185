"""Compiles the kernel for this processor, once, if there is a C compiler; else there is none.

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

__all__ = ["Library", "NoKernel", "load"]

_SOURCE = Path(__file__).with_name("attention.c")
_FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fopenmp", "-shared", "-fPIC")


class NoKernel(Exception):
    """Why there is no compiled kernel here."""


@dataclass(frozen=True)
class Library:
    """The loaded kernel. `level` is 2 with AMX and 1 with AVX512-BF16 only."""

    handle: ctypes.CDLL
    level: int


def load(cache_dir: Path) -> Library:
    """The kernel for this processor, compiled on first use. Raises NoKernel."""
    if platform.machine() not in {"x86_64", "AMD64"} or platform.system() != "Linux":
        raise NoKernel(
            f"the kernel is for Linux on x86-64, not {platform.system()} {platform.machine()}"
        )
    if "avx512_bf16" not in _cpu_flags():
        raise NoKernel("the processor has no AVX512-BF16")
    path = cache_dir / f"attention-{_fingerprint()}.so"
    if not path.exists():
        _compile(path)
    try:
        handle = ctypes.CDLL(str(path))
    except OSError as error:
        raise NoKernel(f"{path.name} cannot be loaded: {error}") from error
    level = int(handle.kdn_attention_level())
    if level == 0:
        raise NoKernel("the processor refuses AVX512-BF16")
    return Library(handle, level)


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
    parts = (_SOURCE.read_bytes(), _compiler().encode(), " ".join(sorted(_cpu_flags())).encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _compile(path: Path) -> None:
    """Write to a temporary name, then rename: two processes may compile at once."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            command = [_compiler(), *_FLAGS, str(_SOURCE), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
            if done.returncode:
                raise NoKernel(f"{command[0]} cannot compile the kernel: {done.stderr[-400:]}")
            made.rename(path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoKernel(f"the kernel cannot be compiled: {error}") from error
