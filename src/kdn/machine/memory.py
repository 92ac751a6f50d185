"""Memory for large buffers: its pages are made once and used again.

A page costs when it is first written: huge pages of a plain machine 0.06 ms for a MB, and 2 ms where a
hypervisor takes back what its guest leaves free for some seconds.  An answer to 512 tokens retains 12 MB
and notes them in 18 MB before, so that retention took an eighth of the engine's time there.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
import weakref
from bisect import bisect
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

__all__ = [
    "OWN_PAGES_FROM",
    "Bytes",
    "PagePool",
    "allocate",
    "bytes_of",
    "keep_freed",
    "make_ready",
]

Bytes = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

OWN_PAGES_FROM = 1 << 20
"""Buffers from here on get pages of their own; for smaller ones a mapping each would be waste."""
_STEP = 256 << 10
"""Buffers begin at multiples of it."""
_PIECE_BYTES = 4 << 20
"""How much is made ready between two looks whether there is still time."""
_SPAN = 4
"""Addresses that are taken, as a multiple of the machine's memory: an address costs nothing."""
_KEPT_SHARE, _MOST_KEPT_BYTES = 16, 1 << 30


def allocate(size_bytes: int, *, zeroed: bool = True) -> memoryview:
    """A writable buffer that lives as long as any view of it: of zeros, or else of what was there before.

    A large one is aligned to a page.  Its pages come from earlier buffers where there are some, and are else
    made when first written, so that a block of which one layer is read costs little more than that layer.
    Without zeros no byte may be shown that was not written: it may be another tenant's.
    """
    if size_bytes < OWN_PAGES_FROM:
        return memoryview(bytearray(size_bytes))
    pool = _pool()
    pooled = None if pool is None else pool.allocate(size_bytes, zeroed=zeroed)
    return memoryview(_mapped(size_bytes)) if pooled is None else pooled


def bytes_of(buffer: memoryview | bytes) -> Bytes:
    """A buffer's bytes in C order, uncopied where those of the last axis lie together."""
    view = memoryview(buffer)
    if view.c_contiguous:
        return np.frombuffer(view, np.uint8)
    if view.format == "B" and view.strides is not None and view.strides[-1] == 1:
        return np.asarray(view)
    return np.frombuffer(view.tobytes(), np.uint8)


def make_ready(size_bytes: int, has_time: Callable[[], bool]) -> None:
    """Make pages for buffers to come, until `size_bytes` lie ready or there is no more time."""
    pool = _pool()
    if pool is not None:
        pool.make_ready(size_bytes, has_time)


@lru_cache(maxsize=1)
def _pool() -> PagePool | None:
    """This process's; None where a system does not promise zeros in pages that were given back."""
    if sys.platform != "linux":
        return None
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    kept_bytes = min(memory_bytes, _limit_bytes() or memory_bytes) // _KEPT_SHARE
    try:
        return PagePool(_SPAN * memory_bytes, min(kept_bytes, _MOST_KEPT_BYTES))
    except OSError:  # a limit on addresses
        return None


def _limit_bytes() -> int | None:
    """What the process's control group may have; None where it has no limit."""
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text("ascii").strip()
    except OSError:
        return None
    return int(limit) if limit.isdecimal() else None


def _mapped(size_bytes: int, flags: int = 0) -> mmap.mmap:
    pages = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | flags)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # Filling 6 MB of fresh 4 KiB pages took 3.9 ms, of huge ones 1.8 ms (0.6 ms is the copy).
        pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


class PagePool:
    """Large buffers out of one range of addresses. Safe from several threads.

    Up to `keep_bytes` of what was given back keep their pages for the next buffers; the system gets the rest.
    """

    def __init__(self, span_bytes: int, keep_bytes: int) -> None:
        """Raises OSError where so many addresses cannot be had."""
        # Without this flag the system may refuse a range that is larger than its memory.
        self._pages = _mapped(span_bytes, getattr(mmap, "MAP_NORESERVE", 0x4000))
        self._keep_bytes = keep_bytes
        self._lock = threading.Lock()
        self._ready, self._bare = _Extents(), _Extents()
        """Free ranges with pages, and those without."""
        self._end = 0
        """No address from here on was ever given out."""
        self._lent_bytes = self._most_lent_bytes = 0
        """Now, and at any time since pages were last made ready."""
        self._returned: deque[tuple[int, int]] = deque()

    @property
    def ready_bytes(self) -> int:
        """What the next buffers find made."""
        return self._ready.size_bytes

    def allocate(self, size_bytes: int, *, zeroed: bool = True) -> memoryview | None:
        """A buffer, given back with its last view; None when the addresses are used up."""
        span = -(-size_bytes // _STEP) * _STEP
        with self._lock:
            start = self._ready.take(span)
            is_used = start is not None
            if start is None:
                start = self._fresh(span)
            if start is not None:
                self._lent_bytes += span
                self._most_lent_bytes = max(self._most_lent_bytes, self._lent_bytes)
        self._settle()
        if start is None:
            return None
        buffer = np.frombuffer(self._pages, np.uint8, size_bytes, start)
        # The collector may run it anywhere, also in here: it must not wait for the lock.
        weakref.finalize(buffer, self._give_back, start, start + span).atexit = False
        if is_used and zeroed:
            buffer.fill(0)
        return buffer.data

    def make_ready(self, size_bytes: int, has_time: Callable[[], bool]) -> None:
        """Make pages, while there is time, for `size_bytes` beside what was lent at once since the last time.

        At most what is kept.
        """
        while self.ready_bytes + _PIECE_BYTES <= self._wanted(size_bytes):
            if not has_time():
                return
            with self._lock:
                start = self._fresh(_PIECE_BYTES)
                if start is None:
                    return
                self._lent_bytes += _PIECE_BYTES
            np.frombuffer(self._pages, np.uint8, _PIECE_BYTES, start).fill(0)
            self._give_back(start, start + _PIECE_BYTES)
        self._most_lent_bytes = self._lent_bytes

    def check(self) -> None:
        """Audit the ranges. Raises AssertionError."""
        with self._lock:
            both = sorted((*self._ready.ranges, *self._bare.ranges))
            assert all(a[1] <= b[0] for a, b in pairwise(both)), "they overlap"
            assert not both or both[-1][1] <= self._end, "a range lies beyond the end"
            assert self._ready.size_bytes <= self._keep_bytes, "more is kept than may be"
            free_bytes = self._ready.size_bytes + self._bare.size_bytes
            assert free_bytes + self._lent_bytes == self._end, "bytes are lost"
            for extents in (self._ready, self._bare):
                sizes = sum(stop - start for start, stop in extents.ranges)
                assert sizes == extents.size_bytes, "bytes differ"

    def _wanted(self, size_bytes: int) -> int:
        come_back = self._most_lent_bytes - self._lent_bytes
        return min(size_bytes + come_back, self._keep_bytes)

    def _fresh(self, span: int) -> int | None:
        """Addresses without pages."""
        start = self._bare.take(span)
        if start is None and self._end + span <= len(self._pages):
            start = self._end
            self._end += span
        return start

    def _give_back(self, start: int, stop: int) -> None:
        self._returned.append((start, stop))
        self._settle()

    def _settle(self) -> None:
        """Who finds the lock taken leaves its range to the holder, who looks again at the end."""
        while self._returned and self._lock.acquire(blocking=False):
            try:
                while self._returned:
                    self._retire(*self._returned.popleft())
            finally:
                self._lock.release()

    def _retire(self, start: int, stop: int) -> None:
        self._lent_bytes -= stop - start
        if self._ready.size_bytes + stop - start <= self._keep_bytes:
            self._ready.add(start, stop)
            return
        self._pages.madvise(mmap.MADV_DONTNEED, start, stop - start)
        self._bare.add(start, stop)


class _Extents:
    """Ranges that do not touch, ascending."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []
        self.size_bytes = 0

    def take(self, span: int) -> int | None:
        """The start of the first `span` bytes in a row, which are taken out; None when there are none."""
        for at, (start, stop) in enumerate(self.ranges):
            if stop - start >= span:
                self.ranges[at : at + 1] = [(start + span, stop)] if stop - start > span else []
                self.size_bytes -= span
                return start
        return None

    def add(self, start: int, stop: int) -> None:
        """A range that was not in; it is joined with its neighbours."""
        self.size_bytes += stop - start
        at = bisect(self.ranges, (start, stop))
        first, last = at, at
        if at and self.ranges[at - 1][1] == start:
            first, start = at - 1, self.ranges[at - 1][0]
        if at < len(self.ranges) and self.ranges[at][0] == stop:
            last, stop = at + 1, self.ranges[at][1]
        self.ranges[first:last] = [(start, stop)]


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
