"""Blocks that are being read: each comes out of its tier once, and its speed is measured."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from itertools import count

from kdn.core import BlockKey
from kdn.errors import CorruptBlock, StoreError
from kdn.store.block.format import EncodedBlock
from kdn.store.block.pieces import do_together
from kdn.store.block.reader import Handle, Reader, StoreLoad, Take, read_header
from kdn.store.index.followed import FollowedIndex
from kdn.store.index.index import BlockHit
from kdn.store.links import Links
from kdn.store.tiers.tier import Outcomes, Tier, Tiers

__all__ = ["Loads", "TimedHandle", "open_leading", "open_runs"]


class TimedHandle(Handle):
    """A handle whose reads are timed."""

    def __init__(self, handle: Handle, tier: str, links: Links) -> None:
        self._handle = handle
        self._tier = tier
        self._links = links
        self.buffer = handle.buffer
        self.header = handle.header

    def read(self, start: int, stop: int) -> memoryview:
        with self._links.side_by_side(self._tier, self._moved(stop - start)):
            return self._handle.read(start, stop)

    def read_each(self, ranges: Sequence[tuple[int, int]], then: Take) -> None:
        with self._links.side_by_side(self._tier, self._moved(ranges[-1][1] - ranges[0][0])):
            self._handle.read_each(ranges, then)

    @property
    def at_once(self) -> int:
        return self._handle.at_once

    def _moved(self, asked_bytes: int) -> Callable[[], int]:
        """A read that reaches ahead moves more than was asked for, and the next one nothing."""
        handle, before = self._handle, self._handle.moved_bytes

        def moved() -> int:
            after = handle.moved_bytes
            return asked_bytes if before is None or after is None else after - before

        return moved

    def is_read(self, start: int, stop: int) -> bool:
        return self._handle.is_read(start, stop)

    def close(self) -> None:
        self._handle.close()


class _Turn:
    """The lock under which one block is opened, and how many callers want it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.wanted = 0


class Loads:
    """Opens blocks from the fastest tier that has them whole, and shares what is open.

    `on_whole` is told of every block that came whole out of any tier but the fastest.  `finish` may take
    over a load from far that no reader has any more before all of it came: True says that it will close
    it.
    """

    def __init__(
        self,
        tiers: Tiers,
        index: FollowedIndex,
        outcomes: Outcomes,
        links: Links,
        on_whole: Callable[[Tier, EncodedBlock], None],
        finish: Callable[[StoreLoad], bool],
    ) -> None:
        self._tiers = tiers
        self._index = index
        self._outcomes = outcomes
        self._links = links
        self._on_whole = on_whole
        self._finish = finish
        self._far = {tier.name for tier in tiers.far}
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
        """Another caller for the same block waits meanwhile, and then finds it open."""
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
        """A reader is done with the load that `enter` gave."""
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
            self._index.quarantine(tier, key, error)
            return None
        return header.size_bytes

    def check(self) -> None:
        """Audit what is open. Raises AssertionError saying what does not add up."""
        with self._lock:
            for key, load in self._open.items():
                assert load.readers > 0, f"{key} is open and has no reader"

    def _begin(self, key: BlockKey) -> StoreLoad | None:
        for tier in self._tiers:
            if not tier.is_reachable():
                continue
            try:
                load = self._load(tier, key)
            except CorruptBlock as error:
                self._index.quarantine(tier, key, error)
                continue
            except StoreError as error:
                self._outcomes.failed(tier, error)
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
            on_whole=None if tier is self._tiers.fastest else partial(self._on_whole, tier),
            on_corrupt=partial(self._spoiled, tier, key),
        )

    def _spoiled(self, tier: Tier, key: BlockKey, error: CorruptBlock) -> None:
        """Readers that open the block from now on do not share the damaged load."""
        with self._lock:
            self._open.pop(key, None)
        self._index.quarantine(tier, key, error)


_FAR_AT_ONCE = 8
"""As many calls as a tier across a network makes in parallel."""


def open_leading(
    tiers: Tiers, hits: Iterable[BlockHit], open_one: Callable[[BlockHit], Reader | None]
) -> list[Reader]:
    """Readers of the leading blocks that `open_one` opens, as `open_runs` opens them."""
    return open_runs(tiers, [tuple(hits)], open_one)[0]


def open_runs(
    tiers: Tiers,
    runs: Sequence[Sequence[BlockHit]],
    open_one: Callable[[BlockHit], Reader | None],
) -> list[list[Reader]]:
    """Of each run readers of its leading blocks, as far as `open_one` opens them.

    All are opened together, where some take a round trip.  Where opening one raises, none stays open.
    """
    hits = [(run, at, hit) for run, some in enumerate(runs) for at, hit in enumerate(some)]
    opened, missing = dict[tuple[int, int], Reader](), list[tuple[int, int]]()

    def work(one: tuple[int, int, BlockHit]) -> None:
        run, at, hit = one
        gone = any(run == other and at > place for other, place in missing)
        reader = None if gone else open_one(hit)
        if reader is None:
            missing.append((run, at))
        else:
            opened[run, at] = reader

    num_leading, named = [0] * len(runs), {hit.tier for _, _, hit in hits}
    try:
        if any(tier.name in named for tier in tiers.far):
            do_together(work, hits, _FAR_AT_ONCE)
        else:
            for one in hits:
                work(one)
        num_leading = [
            next(at for at in count() if (run, at) not in opened) for run in range(len(runs))
        ]
    finally:
        for (run, at), reader in opened.items():
            if at >= num_leading[run]:
                with suppress(Exception):
                    reader.close()
    return [[opened[run, at] for at in range(number)] for run, number in enumerate(num_leading)]
