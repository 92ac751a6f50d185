"""Threads that help a thread with tensor operations, and giving them up when others compute.

GNU's OpenMP keeps a team for every thread that ever ran a parallel loop.  With more teams than
processors it lets waiting workers sleep instead of spin, and then every loop begins with waking
them: an engine's thread took 1.25 times as long for a pass as long as the thread that had loaded the
model kept its idle team, with 8,000 switches between threads a second instead of 60.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path

__all__ = ["give_up_workers"]

_MAPS = Path("/proc/self/maps")
_SOFT = 1
"""OpenMP's name for giving up threads and keeping settings."""


def give_up_workers() -> None:
    """End the calling thread's idle workers. They come back when it next computes something.

    Does nothing in the middle of a computation, or where tensors are computed with other libraries.
    """
    for library in _libraries():
        library.omp_pause_resource_all(_SOFT)


@lru_cache(maxsize=1)
def _libraries() -> tuple[ctypes.CDLL, ...]:
    """GNU OpenMP as it is loaded into this process; torch brings a copy of its own."""
    if not _MAPS.is_file():
        return ()
    lines = _MAPS.read_text("utf-8").splitlines()
    paths = {line.split(maxsplit=5)[-1] for line in lines if "libgomp" in line}
    found = (ctypes.CDLL(path) for path in sorted(paths) if Path(path).is_file())
    return tuple(library for library in found if hasattr(library, "omp_pause_resource_all"))
