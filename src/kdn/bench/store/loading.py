"""Loads under control: off a device beside raw reads, and over a link as slow as wanted."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from kdn import api
from kdn.bench.common.result import BenchOptions
from kdn.bench.engine.contestants import KdnContestant
from kdn.bench.store.far import NEW_TOKENS, Hits
from kdn.clock import Clock
from kdn.core import BLOCK_TOKENS, BlockId, BlockKey, TokenIds
from kdn.errors import EngineFailed
from kdn.machine.memory import allocate
from kdn.reuse.source import StoreSource
from kdn.store import DiskTier, Handle, MemoryTier, Reader, Store, layers_together
from kdn.store.block.pieces import do_together
from kdn.trace import NoTrace

__all__ = ["DeviceReads", "Overlap", "overlap_excess"]

_RAW_READ_BYTES = 1 << 20
_BUFFER_BYTES = 256 << 10
_FREE = 1e12
"""Bytes a second of a link that takes no time."""


class DeviceReads:
    """Equal bytes read as blocks (verified or not) and raw, past the system's cache if possible."""

    def __init__(self, hits: Hits, folder: Path, blocks: int, clock: Clock) -> None:
        self._clock = clock
        self._tier = DiskTier(folder, 10**11, clock, NoTrace(), direct=True)
        self._store = Store([self._tier], clock=clock)
        prefix = hits.prompt("device", blocks * BLOCK_TOKENS, 0)
        encoded = hits.blocks(prefix)
        for block in encoded:
            self._store.put_encoded(block)
        self._names = [block.header.id for block in encoded]
        self._num_layers = encoded[0].header.shape.num_layers
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="bench-loader")
        self.size_bytes = sum(block.size_bytes for block in encoded)
        self._raw = folder.parent / "raw.bin"
        with self._raw.open("wb") as file:
            for block in encoded:
                file.write(block.data)
            os.fsync(file.fileno())
        self._buffer = allocate(self.size_bytes)
        self.direct = self._can_be_direct()

    def raw_s(self, number: int) -> float:
        """Seconds of reading one file with as many bytes, in pieces and into memory like the store's.

        One read at a time, or into pages that lie badly, is less than the device gives.
        """
        flags = os.O_RDONLY | (os.O_DIRECT if self.direct else 0)
        descriptor = os.open(self._raw, flags)
        try:
            started_s = self._clock.now()
            do_together(
                lambda at: self._read_raw(descriptor, at),
                range(0, self.size_bytes, _RAW_READ_BYTES),
            )
            return self._clock.now() - started_s
        finally:
            os.close(descriptor)

    def verified_s(self, number: int) -> float:
        """Seconds of reading every block, side by side as a hit's blocks are."""
        return self._seconds(lambda readers: layers_together(readers, 0, self._num_layers))

    def unverified_s(self, number: int) -> float:
        """The same, believing the disk."""
        self._tier.trusted = True
        try:
            return self.verified_s(number)
        finally:
            self._tier.trusted = False

    def hit_s(self, number: int) -> float:
        """The same, verified, some layers of all blocks at once: a hit computes the first ones meanwhile."""
        return self._seconds(self._by_layers)

    def close(self) -> None:
        self._loader.shutdown()
        self._store.close()

    def _read_raw(self, descriptor: int, at: int) -> None:
        stop = min(at + _RAW_READ_BYTES, self.size_bytes)
        while at < stop and (got := os.preadv(descriptor, [self._buffer[at:stop]], at)):
            at += got

    def _seconds(self, read: Callable[[Sequence[Reader]], object]) -> float:
        started_s = self._clock.now()
        with ExitStack() as held:
            readers = [held.enter_context(self._opened(name)) for name in self._names]
            read(readers)
        return self._clock.now() - started_s

    def _opened(self, name: BlockId) -> Reader:
        reader = self._store.open(name)
        if reader is None:
            raise EngineFailed("a block of the benchmark is gone")
        return reader

    def _by_layers(self, readers: Sequence[Reader]) -> None:
        source = StoreSource("device", readers, readers[0].shape, self._loader, self._clock)
        for layer in range(self._num_layers):
            source.take(layer)

    def _can_be_direct(self) -> bool:
        try:
            os.close(os.open(self._raw, os.O_RDONLY | os.O_DIRECT))
        except (OSError, AttributeError):
            return False
        return True


class _Slow(Handle):
    """A handle over a link of so many bytes a second, which all handles share."""

    def __init__(self, handle: Handle, link: _Link) -> None:
        self._handle, self._link = handle, link
        self.buffer, self.header = handle.buffer, handle.header

    def read(self, start: int, stop: int) -> memoryview:
        self._link.carry(stop - start)
        return self._handle.read(start, stop)

    def close(self) -> None:
        self._handle.close()


class _Link:
    """Bytes one after another, at a rate.

    As a socket's buffer fills while its reader is busy elsewhere, so a reader who comes a little
    late finds on its way what it asks for; who leaves the link alone for longer does not.
    """

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self._free_s = 0.0
        self._lock = threading.Lock()

    def carry(self, num_bytes: int) -> None:
        with self._lock:
            now_s = time.monotonic()
            is_late = (now_s - self._free_s) * self.bytes_per_s <= _BUFFER_BYTES
            began_s = self._free_s if is_late else now_s
            self._free_s = began_s + num_bytes / self.bytes_per_s
            time.sleep(max(self._free_s - now_s, 0.0))


class _SlowMemory(MemoryTier):
    """Blocks in memory behind a link."""

    name = "slow"

    def __init__(self) -> None:
        super().__init__(10**11, NoTrace())
        self.link = _Link(_FREE)

    def open(self, key: BlockKey) -> Handle | None:
        handle = super().open(key)
        return None if handle is None else _Slow(handle, self.link)


@dataclass(frozen=True)
class Overlap:
    """How a load and a computation went, alone and together; medians over rounds."""

    compute_s: float
    load_s: float
    both_s: float
    excess: float
    """Over the longer of the two, round by round."""
    low: float
    high: float


def overlap_excess(
    options: BenchOptions, hits: Hits, length: int, wanted: float, pairs: int
) -> Overlap:
    """A hit of `length` tokens with half as many new ones, over a link that makes its load take
    `wanted` times as long as its computing. Medians of `pairs` rounds.

    Computing is timed before and after, with nothing to wait for.
    """
    engine = hits.service
    tier = _SlowMemory()
    store = Store([tier], clock=options.clock)
    service = api.over(engine.parts, store, options.clock, NoTrace())
    ours = KdnContestant(service.engine, options.clock, store.flush)
    try:
        rounds = [
            _one_round(hits, tier, store, ours, length, wanted, number) for number in range(pairs)
        ]
    finally:
        service.close()
    compute_s, load_s, both_s = (statistics.median(each) for each in zip(*rounds, strict=True))
    excesses = [both / max(compute, load) - 1 for compute, load, both in rounds]
    excess, low, high = statistics.median(excesses), min(excesses), max(excesses)
    return Overlap(compute_s, load_s, both_s, excess, low, high)


def _one_round(
    hits: Hits,
    tier: _SlowMemory,
    store: Store,
    ours: KdnContestant,
    length: int,
    wanted: float,
    number: int,
) -> tuple[float, float, float]:
    rest = hits.prompt("overlap-rest", length // 2 + NEW_TOKENS, number)

    def hit_s(which: int, bytes_per_s: float) -> float:
        tier.link.bytes_per_s = _FREE
        prefix = _placed(hits, tier, store, length, 3 * number + which)
        tier.link.bytes_per_s = bytes_per_s
        return ours.hit_s(prefix, rest)[0]

    before_s = hit_s(0, _FREE)
    load_s = wanted * before_s
    both_s = hit_s(1, length * hits.token_bytes / load_s)
    compute_s = (before_s + hit_s(2, _FREE)) / 2  # the machine's speed drifts
    for key in list(tier.block_keys()):
        store.drop(key)
    return compute_s, load_s, both_s


def _placed(hits: Hits, tier: _SlowMemory, store: Store, length: int, number: int) -> TokenIds:
    prefix = hits.prompt("overlap", length, number)
    for block in hits.blocks(prefix):
        store.tenancy.put_into(tier, block)
    store.index.refresh()
    return prefix
