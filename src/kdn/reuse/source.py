"""Stored blocks as a layer source: read ahead by one thread, joined along the tokens.

Layers are read together in larger and larger groups, for as long as that makes reading faster.

    a memory or a near disk     1 1 1 2 2 4 6 6     a read is over in a moment
    a link that is the limit    1 1 1 2 2 1 1 1     more together was no faster
    a distant disk              1 1 1 2 2 4 4 6     most of the time is each read's latency

A layer can only be computed when all that is read with it has arrived, and the last read's layers
are computed with nothing left to load.  So reading more together costs time, unless it makes reading
faster.
"""

from __future__ import annotations

import ctypes
import math
import statistics
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from itertools import pairwise
from math import inf

import numpy as np
import torch
from torch import Tensor

from kdn.clock import Clock
from kdn.core import KvShape, LayerKV
from kdn.errors import CorruptBlock
from kdn.store import Reader, layers_together
from kdn.trace import Value

__all__ = [
    "MeasuredSpeeds",
    "Pace",
    "StoreSource",
    "close_all",
    "loaded_bytes",
    "tensor_over",
    "tensor_over_all",
    "tokens_by_tier",
]

_READ_BYTES = 1 << 20
"""One read of a block is at most this, or one layer."""

MOMENT_S = 0.004
"""A read shorter than this delays no layer, and its fixed costs are worth saving."""

PAYS = 1.15
"""Growing must bring at least so many times the speed; less is within what reads differ by."""


class Pace:
    """The size of the next read, from how long the reads before it took."""

    def __init__(self, most: int) -> None:
        """`most` layers together, at least one."""
        self._most = max(most, 1)
        self._size = 1
        self._base: tuple[int, float] | None = None
        """The largest size known to pay, and its speed; None while reads were over in a moment."""
        self._is_final = False

    @property
    def size(self) -> int:
        """How many layers to read next."""
        return self._size

    def took(self, num_layers: int, seconds: float) -> None:
        """A read of `num_layers` is over. To be told in the order of the reads."""
        if self._is_final:
            return
        if seconds < MOMENT_S:
            self._grow(num_layers)
            return
        speed = num_layers / seconds
        if self._base is None:
            self._base = num_layers, speed
            self._grow(num_layers)
        elif num_layers > self._base[0]:
            self._judge(num_layers, speed)

    def _judge(self, num_layers: int, speed: float) -> None:
        """Was it better than the smaller size?"""
        assert self._base is not None, "there is something to compare with"
        if speed >= PAYS * self._base[1]:
            self._base = num_layers, speed
            self._grow(num_layers)
        else:
            self._size, self._is_final = self._base[0], True

    def _grow(self, num_layers: int) -> None:
        self._size = max(self._size, min(2 * num_layers, self._most))


class StoreSource:
    """KV of neighbouring blocks, a layer at a time. Holds the blocks pinned until closed.

    `start` never waits: a thread reads and verifies.  `take` raises CorruptBlock when a block is
    damaged, which the store has put out of use by then, or cannot be read.
    """

    def __init__(
        self,
        name: str,
        readers: Sequence[Reader],
        shape: KvShape,
        loader: Executor,
        clock: Clock,
        *,
        layers: Sequence[range] | None = None,
    ) -> None:
        """`layers`, ascending, are those that will be taken; None: all. Nothing else is read."""
        self._name = name
        self._readers = tuple(readers)
        self._shape = shape
        self._loader = loader
        self._dtype = getattr(torch, shape.dtype)
        largest = max(reader.id.num_tokens for reader in readers)
        self._clock = clock
        self.load_s = 0.0
        """Seconds spent reading so far, most of them while other layers are computed."""
        self._pace = Pace(-(-_READ_BYTES // (largest * shape.layer_token_bytes)))
        self._left = list(layers if layers is not None else (range(shape.num_layers),))
        """Layers that no group has been begun of."""
        self._groups: list[range] = []
        self._loads: list[Future[list[list[LayerKV]]]] = []

    @property
    def name(self) -> str:
        return self._name

    @property
    def num_tokens(self) -> int:
        return sum(reader.num_tokens for reader in self._readers)

    def start(self, layer: int) -> None:
        """Start to read the layer's group, and the one after it."""
        while self._left and not (self._groups and layer < self._groups[-1].stop):
            self._begin()
        if self._group(layer) == len(self._loads) - 1:
            self._begin()

    def take(self, layer: int) -> list[LayerKV]:
        self.start(layer)
        group = self._group(layer)
        at = layer - self._groups[group].start
        try:
            return [runs[at] for runs in self._loads[group].result()]
        except CorruptBlock:
            raise
        except Exception as error:
            raise CorruptBlock(f"stored KV {self._name} could not be read: {error!r}") from error

    def close(self) -> None:
        for load in self._loads:
            load.cancel()
        close_all(self._readers)

    def _begin(self) -> None:
        """Start to read the next group of layers, if any is left."""
        if not self._left:
            return
        group = self._left[0][: self._pace.size]
        rest = self._left[0][len(group) :]
        self._left[:1] = [rest] if rest else []
        self._groups.append(group)
        self._loads.append(self._submit(group.start, group.stop))

    def _submit(self, start: int, stop: int) -> Future[list[list[LayerKV]]]:
        """The read under way; where none can be started, one that has failed."""
        try:
            return self._loader.submit(self._load, start, stop)
        except RuntimeError as error:  # the loader is shut down, or has no thread to give
            failed: Future[list[list[LayerKV]]] = Future()
            failed.set_exception(error)
            return failed

    def _group(self, layer: int) -> int:
        found = bisect_right(self._groups, layer, key=lambda group: group.start) - 1
        assert found >= 0, "no such layer was to be read"
        assert layer in self._groups[found], "no such layer was to be read"
        return found

    def _load(self, start: int, stop: int) -> list[list[LayerKV]]:
        """Of every block the runs of layers [start, stop)."""
        began_s = self._clock.now()
        runs = layers_together(self._readers, start, stop)
        loaded = list(map(self._runs, self._readers, runs))
        took_s = self._clock.now() - began_s
        self.load_s += took_s
        self._pace.took(stop - start, took_s)
        return loaded

    def _runs(self, reader: Reader, runs: Sequence[memoryview]) -> list[LayerKV]:
        """Of every layer of one read the K and V of the block's first tokens."""
        size = (2, reader.id.num_tokens, self._shape.num_kv_heads, self._shape.head_dim)
        together = tensor_over_all(runs, self._dtype, size)
        if together is None:
            whole = [tensor_over(run, self._dtype).view(size) for run in runs]
            return [LayerKV(*one[:, : reader.num_tokens].unbind()) for one in whole]
        together = together[:, :, : reader.num_tokens]
        return list(map(LayerKV, together[:, 0].unbind(), together[:, 1].unbind()))


def close_all(readers: Iterable[Reader]) -> None:
    """Close every reader, also where closing one fails."""
    for reader in readers:
        with suppress(Exception):
            reader.close()


def tokens_by_tier(readers: Iterable[Reader]) -> dict[str, int]:
    """How many tokens each tier supplies."""
    tiers: dict[str, int] = {}
    for reader in readers:
        tiers[reader.tier] = tiers.get(reader.tier, 0) + reader.num_tokens
    return tiers


def loaded_bytes(blocks: list[list[LayerKV]]) -> int:
    """The bytes of KV that one read of a source has loaded."""
    return sum(run.k.nbytes + run.v.nbytes for runs in blocks for run in runs)


def tensor_over(data: memoryview, dtype: torch.dtype) -> Tensor:
    """The bytes as a flat tensor, uncopied. Torch has no read-only memory: callers must not write to it."""
    return _tensor_at(_address(data), data.nbytes, data, dtype)


def tensor_over_all(
    runs: Sequence[memoryview], dtype: torch.dtype, size: tuple[int, ...]
) -> Tensor | None:
    """As `tensor_over`, of runs that each hold a tensor of that size: [runs, *size].

    None unless they lie in one buffer at even distances, as the layers of a plain block do: making a
    tensor of each takes longer than finding this out.
    """
    if any(run.obj is not runs[0].obj for run in runs):
        return None
    places = [_address(run) for run in runs]
    steps = {b - a for a, b in pairwise(places)} or {runs[0].nbytes}
    step = steps.pop()
    if steps or step < runs[0].nbytes or step % dtype.itemsize:
        return None
    size_bytes = places[-1] + runs[-1].nbytes - places[0]
    inner = [math.prod(size[at + 1 :]) for at in range(len(size))]
    flat = _tensor_at(places[0], size_bytes, runs, dtype)
    return flat.as_strided((len(runs), *size), (step // dtype.itemsize, *inner))


def _address(data: memoryview) -> int:
    place: int = np.frombuffer(data, dtype=np.uint8).__array_interface__["data"][0]
    return place


def _tensor_at(place: int, size_bytes: int, source: object, dtype: torch.dtype) -> Tensor:
    raw = (ctypes.c_char * size_bytes).from_address(place)
    raw.source = source  # type: ignore[attr-defined]  # the tensor keeps the bytes alive
    return torch.frombuffer(raw, dtype=dtype)


_REMEMBERED = 16
"""Measurements that count; older ones may be of another load on the machine."""
_FEWEST_TOKENS = 256
"""Shorter prefills say more about overheads than about speed."""


class MeasuredSpeeds:
    """How quick loads and prefills have been in this process. Safe from several threads.

    As a trace listener it takes the speed of a prefill from answers that nothing was blended for.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._token_s: deque[float] = deque(maxlen=_REMEMBERED)
        self._byte_s: dict[str, deque[float]] = {}

    def load_s(self, tier: str, size_bytes: int) -> float:
        """Seconds to load so many bytes, as measured; 0 when nothing was."""
        with self._lock:
            known = self._byte_s.get(tier)
            return statistics.median(known) * size_bytes if known else 0.0

    def prefill_s(self, num_tokens: int) -> float:
        """Seconds to compute so many tokens, as measured; 0 when nothing was."""
        with self._lock:
            return statistics.median(self._token_s) * num_tokens if self._token_s else 0.0

    def loaded(self, tier: str, size_bytes: int, seconds: float) -> None:
        """Take note of a load."""
        if _is_time(seconds):
            with self._lock:
                known = self._byte_s.setdefault(tier, deque(maxlen=_REMEMBERED))
                known.append(seconds / max(size_bytes, 1))

    def prefilled(self, num_tokens: int, seconds: float) -> None:
        """Take note of a prefill that reused nothing."""
        if num_tokens >= _FEWEST_TOKENS and _is_time(seconds) and seconds > 0:
            with self._lock:
                self._token_s.append(seconds / num_tokens)

    def event(self, name: str, **fields: Value) -> None:
        """As a trace: answers that began with a plain prefill are measurements of it.

        Tokens that were blended, shared or lossy took another time each, so such answers tell nothing.
        """
        if name != "engine.finish" or "ttft_ms" not in fields or fields.get("approximate"):
            return
        computed = float(fields["prompt_tokens"] or 0) - float(fields["exact"] or 0)
        self.prefilled(int(computed), float(fields["ttft_ms"] or 0) / 1000)


def _is_time(seconds: float) -> bool:
    """Is it a duration? A clock that was set back, or a number that is none, measures nothing."""
    return 0 <= seconds < inf
