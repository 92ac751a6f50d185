"""The machine's own C compiler, for what must be fast: once per source, compiler and processor.

Nothing is downloaded.  Code that compiles something has a slower twin for machines without a compiler.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from kdn.machine.files import make_private

__all__ = ["NoCompiler", "compile_shared", "compiler", "cpu_flags", "source_name"]


class NoCompiler(Exception):
    """Why nothing could be compiled."""


def cpu_flags() -> frozenset[str]:
    """The processor's feature flags; empty where the system does not list them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    listed = (line for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(listed, "").partition(":")[2].split())


def compiler() -> str:
    """`$CC`, or the first C compiler on the path. Raises NoCompiler."""
    found = next(
        (c for c in (os.environ.get("CC"), "cc", "gcc", "clang") if c and shutil.which(c)), None
    )
    if found is None:
        raise NoCompiler("no C compiler is installed (cc, gcc or clang)")
    return found


@lru_cache
def _version(command: str) -> bytes:
    """What a compiler says of its version, in whatever language the user reads: another one may order sums
    otherwise. Raises NoCompiler."""
    try:
        told = subprocess.run(
            [command, "--version"],
            capture_output=True,
            check=False,
            timeout=60,
            env={**os.environ, "LC_ALL": "C", "LANGUAGE": ""},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoCompiler(f"{command} does not say which version it is: {error}") from error
    return told.stdout.partition(b"\n")[0]


def source_name(files: Sequence[Path]) -> str:
    """A name that changes with the files' contents, the compiler, its version and the processor.

    Raises NoCompiler.
    """
    parts = (
        *(path.read_bytes() for path in files),
        compiler().encode(),
        _version(shutil.which(compiler()) or ""),
        " ".join(sorted(cpu_flags())).encode(),
    )
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def compile_shared(sources: Sequence[Path], flags: Sequence[str], path: Path) -> None:
    """Compile to the shared library `path`. Raises NoCompiler with the compiler's own words.

    Written under a temporary name, then renamed: two processes may compile together.
    """
    try:
        make_private(path.parent)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            command = [compiler(), *flags, *map(str, sources), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
            if done.returncode:
                raise NoCompiler(f"{command[0]} cannot compile {path.name}: {done.stderr[-400:]}")
            made.chmod(0o700)
            made.rename(path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoCompiler(f"{path.name} cannot be compiled: {error}") from error
