"""This process: pages for large buffers, OpenMP's idle workers, and what others see of its arguments.

GNU's OpenMP keeps a team of workers for every thread that ever ran a parallel loop.  With more teams
than processors it lets waiting workers sleep instead of spin, and then every loop begins with waking
them: an engine's thread took 1.25 times as long for a pass as long as the thread that had loaded the
model kept its idle team, with 8,000 switches between threads a second instead of 60.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

__all__ = [
    "OWN_PAGES_FROM",
    "allocate",
    "give_up_workers",
    "hide_arguments",
    "keep_freed",
    "thread_seconds",
]

OWN_PAGES_FROM = 1 << 20
"""Buffers from here on get pages of their own; for smaller ones a mapping each would be waste."""


def allocate(size_bytes: int) -> memoryview:
    """A writable buffer of zeros that lives as long as any view of it.

    A large one is aligned to a page, and its pages are made when first written: a block of which
    one layer is read costs little more than one layer, and the zeroing happens inside the read,
    outside the interpreter lock.
    """
    if size_bytes < OWN_PAGES_FROM:
        return memoryview(bytearray(size_bytes))
    pages = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # Filling 6 MB of fresh 4 KiB pages took 3.9 ms, of huge ones 1.8 ms (0.6 ms is the copy).
        pages.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(pages)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 1 << 30


def keep_freed() -> None:
    """Have the C allocator keep what is freed for the next layer, in place of returning it.

    Without this, a prefill of 4,096 tokens made some 130,000 pages again, an eighth of its time.
    Nothing happens where the allocator is not glibc's.
    """
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is not None:
        tune(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        tune(_M_TRIM_THRESHOLD, _KEPT_BYTES)


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


def thread_seconds() -> Mapping[str, float]:
    """Processor seconds of this process by thread name, numbers left out; `other` is what no Python thread
    that lives now has used: workers of tensor operations, and threads that have ended.

    Empty where the system does not say what a thread has used (only Linux does).
    """
    found: dict[str, float] = {}
    for thread in threading.enumerate():
        try:
            told = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text("utf-8")
        except OSError:  # it has ended meanwhile
            continue
        name = thread.name.rstrip("0123456789_- ") or thread.name
        found[name] = found.get(name, 0.0) + int(told.split()[0]) / 1e9
    if found:
        found["other"] = max(time.process_time() - sum(found.values()), 0.0)
    return found


def hide_arguments(secrets: Sequence[str]) -> bool:
    """Overwrite secrets among this process's arguments, which every user of the machine can list.

    For a moment after the start they could be read.  False where the system does not say where the
    arguments lie (only Linux does).
    """
    try:
        fields = Path("/proc/self/stat").read_text("utf-8").rpartition(")")[2].split()
    except OSError:
        return False
    start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
    if not 0 < start < end:
        return False
    arguments = bytearray(ctypes.string_at(start, end - start))
    for secret in filter(None, secrets):
        encoded = os.fsencode(secret)
        arguments = arguments.replace(encoded, b"*" * len(encoded))
    ctypes.memmove(start, bytes(arguments), end - start)
    return True


_ARG_START, _ARG_END = 45, 46
"""Fields 48 and 49 of proc(5), after the name and from 0."""
