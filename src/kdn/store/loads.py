"""Blocks that are being read: however many want one at a time, it comes out of its tier once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial

from kdn.core import BlockKey
from kdn.errors import CorruptBlock, StoreError
from kdn.store.block.format import EncodedBlock
from kdn.store.block.reader import StoreLoad, read_header
from kdn.store.stream.throughput import Links, TimedHandle
from kdn.store.tiers.tier import Tier

__all__ = ["Loads"]


class _Turn:
    """Whose turn it is to open a block, and how many want it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.wanted = 0


class Loads:
    """Opens blocks from the fastest tier that has them sound, and shares what is open.

    `on_whole` is told of every block that came whole out of any tier but the first; `on_corrupt` of
    every damaged or lost one, `on_failed` of a tier that could not be asked.  `finish` may take over
    a load from afar that nobody reads any more before all of it came: True says that it will close
    it.
    """

    def __init__(
        self,
        tiers: Sequence[Tier],
        on_whole: Callable[[Tier, EncodedBlock], None],
        on_corrupt: Callable[[Tier, BlockKey, CorruptBlock], None],
        on_failed: Callable[[Tier, StoreError], None],
        finish: Callable[[StoreLoad], bool],
        links: Links,
    ) -> None:
        self._tiers = tuple(tiers)
        self._on_whole = on_whole
        self._on_corrupt = on_corrupt
        self._on_failed = on_failed
        self._finish = finish
        self._links = links
        self._far = {tier.name for tier in tiers if tier.far}
        self._lock = threading.Lock()
        self._turns: dict[BlockKey, _Turn] = {}
        self._open: dict[BlockKey, StoreLoad] = {}

    def enter(self, key: BlockKey) -> StoreLoad | None:
        """The block's load, to be given back with `leave`; None when no tier has it."""
        with self._one_at_a_time(key):
            load = self._join(key)
            if load is not None:
                return load
            load = self._begin(key)
            if load is not None:
                load.readers = 1
                with self._lock:
                    self._open[key] = load
            return load

    def _join(self, key: BlockKey) -> StoreLoad | None:
        with self._lock:
            load = self._open.get(key)
            if load is not None:
                load.readers += 1
            return load

    @contextmanager
    def _one_at_a_time(self, key: BlockKey) -> Iterator[None]:
        """Whoever wants the same block meanwhile waits, and then finds it open."""
        with self._lock:
            turn = self._turns.setdefault(key, _Turn())
            turn.wanted += 1
        try:
            with turn.lock:
                yield
        finally:
            with self._lock:
                turn.wanted -= 1
                if not turn.wanted:
                    del self._turns[key]

    def leave(self, key: BlockKey, load: StoreLoad) -> None:
        with self._lock:
            load.readers -= 1
            if load.readers:
                return
            if self._open.get(key) is load:
                del self._open[key]
        if not (load.tier in self._far and load.is_half_way and self._finish(load)):
            load.close()

    def scrub(self, tier: Tier, key: BlockKey) -> int | None:
        """Read all of a block in `tier` and verify it; its size, or None when it is damaged.

        A block that is gone has size 0.
        """
        try:
            handle = tier.open(key)
            if handle is None:
                return 0
            with closing(handle):
                header = read_header(handle, key)
                load = StoreLoad(header, handle, tier.name, trusted=False)
                load.layers(0, header.shape.num_layers)
        except CorruptBlock as error:
            self._on_corrupt(tier, key, error)
            return None
        return header.size_bytes

    def check(self) -> None:
        """Audit the books. Raises AssertionError saying what does not add up."""
        with self._lock:
            for key, load in self._open.items():
                assert load.readers > 0, f"{key} is open and nobody reads it"

    def _begin(self, key: BlockKey) -> StoreLoad | None:
        for tier in self._tiers:
            if not tier.reachable():
                continue
            try:
                load = self._load(tier, key)
            except CorruptBlock as error:
                self._on_corrupt(tier, key, error)
                continue
            except StoreError as error:
                self._on_failed(tier, error)
                continue
            if load is not None:
                return load
        return None

    def _load(self, tier: Tier, key: BlockKey) -> StoreLoad | None:
        handle = tier.open(key)
        if handle is None:
            return None
        try:
            header = read_header(handle, key)
        except BaseException:
            handle.close()
            raise
        tier.touch(key)
        return StoreLoad(
            header,
            TimedHandle(handle, tier.name, self._links),
            tier.name,
            trusted=tier.trusted,
            on_whole=None if tier is self._tiers[0] else partial(self._on_whole, tier),
            on_corrupt=lambda error: self._spoiled(tier, key, error),
        )

    def _spoiled(self, tier: Tier, key: BlockKey, error: CorruptBlock) -> None:
        """Whoever opens the block from now on is not to share the damaged load."""
        with self._lock:
            self._open.pop(key, None)
        self._on_corrupt(tier, key, error)
