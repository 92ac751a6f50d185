"""Room for a block's bytes."""

from __future__ import annotations

import mmap

__all__ = ["allocate"]

OWN_PAGES_FROM = 1 << 20
"""Buffers from here on get pages of their own; for smaller ones a mapping each would be waste."""


def allocate(size_bytes: int) -> memoryview:
    """A writable buffer of zeros that lives as long as any view of it.

    A large one is aligned to a page, and its pages are made when first written: a block of which
    one layer is read costs one layer of memory, and the zeroing happens inside the read, outside
    the interpreter lock.
    """
    if size_bytes < OWN_PAGES_FROM:
        return memoryview(bytearray(size_bytes))
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return memoryview(mmap.mmap(-1, size_bytes, flags=flags))
