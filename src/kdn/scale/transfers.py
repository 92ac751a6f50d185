"""The worker's side of a connector: KV from the store into the paged cache, and back.

A load reads layer by layer, every run verified before it is written to the cache, in a thread of its
own while the engine computes other requests.  A save copies blocks within the engine's step, so that
the engine may overwrite them after it, and stores the copy from a thread.
"""

from __future__ import annotations

import ctypes
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import accumulate, takewhile

import numpy as np
import torch
from torch import Tensor

from kdn.clock import Clock, SystemClock
from kdn.core import BLOCK_TOKENS, EXACT, BlockId, Fingerprint, chain_hashes
from kdn.errors import KdnError
from kdn.scale.counts import TransferCounts
from kdn.scale.paged import CopiedBlocks, PagedKv, WriteOrder
from kdn.scale.planner import LoadTask, SaveTask
from kdn.store import Block, BlockHit, Reader, Store, layers_together, open_leading

__all__ = ["FinishedLoads", "Transfers"]

logger = logging.getLogger(__name__)

_READ_BYTES = 1 << 20
"""One read of a block is at most this, or one layer."""


@dataclass(frozen=True)
class FinishedLoads:
    """Loads that ended, and the engine's blocks that did not come with them."""

    request_ids: frozenset[str] = frozenset()
    failed_blocks: frozenset[int] = frozenset()


@dataclass
class _Piece:
    """A stored block that is open, and where its first wanted token stands."""

    reader: Reader
    start: int

    @property
    def stop(self) -> int:
        return self.start + self.reader.num_tokens


@dataclass
class _Loading:
    task: LoadTask
    asked: Callable[[], None]
    """Waits for what the engine asked of its device before the load."""
    cancelled: threading.Event = field(default_factory=threading.Event)


class Transfers:
    """Loads and saves of one worker. Its methods are for the engine's thread; none waits for the store.

    What a load could not bring is reported together with the load's end, never later.
    """

    def __init__(
        self,
        store: Store,
        paged: PagedKv,
        fingerprint: Callable[[str | None, str], Fingerprint],
        counts: TransferCounts,
        *,
        queue_bytes: int = 1 << 29,
        load_threads: int = 2,
        handed: Fingerprint | None = None,
        order: WriteOrder | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`order` None is that of the cache's device."""
        self._store = store
        self._handed = handed
        self._paged = paged
        self._layers_at_once = max(1, _READ_BYTES // (BLOCK_TOKENS * paged.shape.layer_token_bytes))
        self._fingerprint = fingerprint
        self._counts = counts
        self._queue_bytes = queue_bytes
        self._order = order or WriteOrder(paged.device)
        self._clock = clock or SystemClock()
        self._changed = threading.Condition()
        self._running: dict[str, _Loading] = {}
        self._ended: list[tuple[LoadTask, int]] = []
        self._waiting_bytes = 0
        self._loads: queue.SimpleQueue[_Loading | None] = queue.SimpleQueue()
        self._saves: queue.SimpleQueue[tuple[SaveTask, CopiedBlocks] | None] = queue.SimpleQueue()
        self._threads = [self._thread("kdn-save", self._save_all)]
        self._threads += [self._thread("kdn-load", self._load_all) for _ in range(load_threads)]

    # --- loads ---

    def load(self, task: LoadTask) -> None:
        """Start a load; `take_finished` tells of its end."""
        loading = _Loading(task, self._order.mark())
        with self._changed:
            self._running[task.request_id] = loading
        self._loads.put(loading)

    def cancel(self, request_ids: Sequence[str] | set[str]) -> None:
        """Give up the loads of these requests soon. Their end is told like any other."""
        with self._changed:
            for request_id in request_ids:
                if request_id in self._running:
                    self._running[request_id].cancelled.set()

    def take_finished(self, wait_s: float = 0.0) -> FinishedLoads:
        """Loads that ended since the last call; waits so long for one while any is running."""
        with self._changed:
            if wait_s and self._running:
                self._changed.wait_for(lambda: bool(self._ended), wait_s)
            ended, self._ended = self._ended, []
        failed: set[int] = set()
        size = self._paged.block_tokens
        for task, good in ended:
            failed.update(task.table[good // size : -(-task.stop // size)])
        return FinishedLoads(frozenset(task.request_id for task, _ in ended), frozenset(failed))

    def _load_all(self) -> None:
        while (loading := self._loads.get()) is not None:
            task, started_s = loading.task, self._clock.now()
            try:
                loading.asked()
                try:
                    good = self._load(loading)
                finally:  # a load that failed wrote, too
                    self._order.finish()
            except Exception:
                logger.exception("kdn: the KV of request %s did not come", task.request_id)
                good = task.start
            self._count(loading, good, started_s)
            with self._changed:
                del self._running[task.request_id]
                self._ended.append((task, good))
                self._changed.notify_all()

    def _load(self, loading: _Loading) -> int:
        """Bring what comes; up to which token everything did, in whole blocks of the engine."""
        task = loading.task
        exact = task.recipe == EXACT
        fingerprint = self._fingerprint(task.adapter, task.generation) if exact else self._handed
        assert fingerprint is not None, "the planner names none"
        found = self._store.match(fingerprint, task.recipe, task.salt, task.token_ids)
        with ExitStack() as opened:
            pieces = self._open_pieces(task, found.hits, opened)
            good = min(pieces[-1].stop, task.stop) if pieces else task.start
            num_layers = len(self._paged.layers)
            for start in range(0, num_layers, self._layers_at_once):
                if loading.cancelled.is_set():
                    return task.start
                stop = min(start + self._layers_at_once, num_layers)
                with suppress(KdnError):  # it is met again below
                    layers_together([piece.reader for piece in pieces], start, stop)
                for layer in range(start, stop):
                    good = min(good, self._load_layer(task, layer, pieces, good))
        return max(good // self._paged.block_tokens * self._paged.block_tokens, task.start)

    def _open_pieces(
        self, task: LoadTask, hits: Sequence[BlockHit], opened: ExitStack
    ) -> list[_Piece]:
        """The stored blocks from the first wanted token on, as far as they open and fit the cache."""
        starts = accumulate((hit.num_tokens for hit in hits), initial=0)
        wanted = [
            (s, hit)
            for s, hit in zip(starts, hits, strict=False)
            if s + hit.num_tokens > task.start
        ]
        readers = open_leading(self._store.tiers, [hit for _, hit in wanted], self._store.open)
        pieces = [
            _Piece(opened.enter_context(reader), start)
            for reader, (start, _) in zip(readers, wanted, strict=False)
        ]
        return list(takewhile(lambda piece: piece.reader.shape == self._paged.shape, pieces))

    def _load_layer(self, task: LoadTask, layer: int, pieces: list[_Piece], good: int) -> int:
        """One layer of all pieces; up to which token it came. Pieces from a damaged one on go."""
        for number, piece in enumerate(pieces):
            try:
                k, v = (self._tensor(part) for part in piece.reader.parts(layer))
            except KdnError:  # counted, and the block put out of use, where it was met
                del pieces[number:]
                return piece.start
            skip = max(task.start - piece.start, 0)
            stop = min(task.stop - piece.start, k.shape[0])
            write = self._paged.write if task.recipe == EXACT else self._paged.write_tokens
            write(layer, task.table, piece.start + skip, k[skip:stop], v[skip:stop])
        return good

    def _tensor(self, data: memoryview) -> Tensor:
        """[tokens, heads, dim] over stored bytes, on the cache's device."""
        shape = self._paged.shape
        # uncopied: torch has no read-only memory, and the cache's write only reads it
        source = np.frombuffer(data, dtype=np.uint8)
        raw = (ctypes.c_char * data.nbytes).from_address(source.ctypes.data)
        raw.source = source  # type: ignore[attr-defined]  # keeps the bytes alive
        flat = torch.frombuffer(raw, dtype=self._paged.dtype)
        return flat.view(-1, shape.num_kv_heads, shape.head_dim).to(self._paged.device)

    def _count(self, loading: _Loading, good: int, started_s: float) -> None:
        task = loading.task
        self._counts.add(
            loaded_tokens=good - task.start,
            load_microseconds=round((self._clock.now() - started_s) * 1e6),
        )
        if loading.cancelled.is_set():
            self._counts.add(cancelled_loads=1)
        elif good < task.stop:
            self._counts.add(failed_loads=1, failed_tokens=task.stop - good)

    # --- saves ---

    def save(self, task: SaveTask) -> None:
        """Copy the task's blocks, and store them from a thread. Too much that waits is dropped."""
        size = self._paged.block_tokens
        table = task.table[task.start // size :]
        size_bytes = len(table) * size * self._paged.shape.token_bytes
        with self._changed:
            full = self._waiting_bytes + size_bytes > self._queue_bytes
            if not full:
                self._waiting_bytes += size_bytes
        if full:
            self._counts.add(dropped_blocks=len(_cuts(task)))
            return
        self._saves.put((task, self._paged.copy_blocks(table)))

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until what was saved is in the store; False when that took longer."""
        with self._changed:
            done = self._changed.wait_for(lambda: self._waiting_bytes == 0, timeout_s)
        return done and self._store.flush(timeout_s)

    def close(self, timeout_s: float = 30.0) -> None:
        """End the threads, once what was saved is stored. The store stays open."""
        self.cancel(set(self._running))
        self._saves.put(None)
        for _ in self._threads[1:]:
            self._loads.put(None)
        for thread in self._threads:
            thread.join(timeout_s)

    def _save_all(self) -> None:
        while (item := self._saves.get()) is not None:
            task, copied = item
            try:
                self._save(task, copied)
            except Exception:
                logger.exception("kdn: a prompt's KV was not stored")
                self._counts.add(dropped_blocks=len(_cuts(task)))
            with self._changed:
                self._waiting_bytes -= copied.size_bytes
                self._changed.notify_all()

    def _save(self, task: SaveTask, copied: CopiedBlocks) -> None:
        shape, skip = self._paged.shape, task.start // copied.block_tokens * copied.block_tokens
        for block_id in _block_ids(task, self._fingerprint(task.adapter, task.generation)):
            start = block_id.start - skip
            runs = tuple(
                copied.run(layer, start, start + block_id.num_tokens)
                for layer in range(shape.num_layers)
            )
            self._store.write_behind(Block(block_id, shape, runs))
            self._counts.add(saved_blocks=1, saved_tokens=block_id.num_tokens)

    def _thread(self, name: str, work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        return thread


def _cuts(task: SaveTask) -> list[tuple[int, int]]:
    """Blocks of the store that a task's tokens make: cut at multiples of BLOCK_TOKENS."""
    stop = len(task.token_ids)
    return [
        (start, min(start + BLOCK_TOKENS, stop)) for start in range(task.start, stop, BLOCK_TOKENS)
    ]


def _block_ids(task: SaveTask, fingerprint: Fingerprint) -> Iterator[BlockId]:
    cuts = _cuts(task)
    chains = chain_hashes(task.token_ids, [start for start, _ in cuts])
    for (start, stop), after in zip(cuts, chains, strict=True):
        tokens = task.token_ids[start:stop]
        yield BlockId(fingerprint, EXACT, task.salt, after, start, tokens)
