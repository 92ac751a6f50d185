"""One request's stored KV, delivered by a deadline: each read in the best encoding that is in time.

    read    1    2    3    4 ...        the link gave, at the read before
    level  stored stored int8 int4      fast fast slow slower

What lies across a network where a node can transcode it comes at any level; the others come as they
are stored.

The choice is the streaming half of CacheGen (Liu et al., SIGCOMM 2024, section 5.3): before every read, take
the best quality with which everything that is left still arrives in time at the speed measured last.  Reads
that run beside it have chosen already: what the link still owes them is taken off first.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from kdn.core import BlockKey
from kdn.errors import CorruptBlock, LostBlock, StoreError
from kdn.store.block.reader import StoreLoad
from kdn.store.codecs import CODECS
from kdn.store.links import Links
from kdn.store.stream.transcode import decode_layers
from kdn.store.tiers.tier import Transcoder

__all__ = ["AS_STORED", "DeliveredLoad", "Delivery", "Level", "Loss", "choose_level"]

AS_STORED = "as stored"
"""The level of a block that comes in the encoding it is stored in."""

_PER_LAYER_BYTES = 256
"""What an encoding may add to a layer's bytes, and an answer to its layers."""
LOSSLESS = "lossless"
LOSSLESS_SHARE = 0.8
"""What the lossless codec leaves of KV until a read has shown it: bf16 KV of small models."""


@dataclass(frozen=True)
class Level:
    """An encoding that a block can be had in; a lossless one has a `kl` of 0."""

    codec: str
    token_bytes: float
    kl: float


def choose_level(levels: Sequence[Level], tokens_left: float, within_bytes: float) -> Level:
    """The level of least loss with which `tokens_left` take no more than `within_bytes`, else the smallest.

    Of levels that lose the same the one named first is preferred.
    """
    for level in sorted(levels, key=lambda level: level.kl):
        if tokens_left * level.token_bytes <= within_bytes:
            return level
    return min(levels, key=lambda level: level.token_bytes)


@dataclass(frozen=True)
class Loss:
    """A lossy codec that may be used: its measured KL, and the share of the bytes that it leaves."""

    kl: float
    share: float


class Delivery:
    """What is left to load, by when, and in which encodings it may come. Safe from several threads.

    `allowed` names the lossy codecs within the request's limit, by measurement; the lossless one
    may always be used.  `sizes` holds the bytes that came, by level, and grows as they come.
    """

    def __init__(
        self,
        *,
        within_s: float,
        num_tokens: int,
        links: Links,
        allowed: Mapping[str, Loss] | None = None,
        on_read: Callable[[BlockKey, int, int, str, int], None] = lambda *_: None,
    ) -> None:
        """`num_tokens` of stored blocks are to be here in `within_s` seconds from now.

        `on_read` is told of each read: block, first layer, last layer, level, bytes.
        """
        self.links = links
        self.sizes: Counter[str] = Counter()
        self._deadline_s = links.clock.now() + within_s
        self._allowed = dict(allowed or {})
        self._shares = {LOSSLESS: LOSSLESS_SHARE}
        self._shares.update({codec: loss.share for codec, loss in self._allowed.items()})
        self._left = float(num_tokens)
        self._running: dict[tuple[BlockKey, int], tuple[float, float]] = {}
        """Reads that run, by block and first layer: their tokens and bytes."""
        self._owed = 0.0
        """Bytes that they had still to get at `_owed_s`."""
        self._owed_s = 0.0
        self._on_read = on_read
        self._lock = threading.Lock()

    @property
    def worst(self) -> str | None:
        """The codec of most loss that may be used; None: all that comes is exact."""
        return max(self._allowed, key=lambda codec: self._allowed[codec].kl, default=None)

    @contextmanager
    def reading(
        self, tier: str, read: tuple[BlockKey, int], tokens: float, sizes: tuple[float, float]
    ) -> Iterator[str]:
        """The level of a read from `tier` that runs inside, and that later ones leave its share of the link.

        Of the read its block and first layer, and how many of the tokens it is; of the block the bytes a
        token, as it is stored and once decoded.
        """
        with self._lock:
            speed, now_s = self.links.last_bytes_per_s(tier), self.links.clock.now()
            came = (speed or 0.0) * (now_s - self._owed_s)
            # one that failed, or that another request's read brought, is owed nothing any more
            most = sum(num_bytes for _, num_bytes in self._running.values())
            self._owed, self._owed_s = min(max(self._owed - came, 0.0), most), now_s
            level = self._choose(speed, *sizes)
            self._owed += tokens * level.token_bytes
            self._running[read] = tokens, tokens * level.token_bytes
        try:
            yield level.codec
        finally:
            with self._lock:
                self._running.pop(read, None)

    def _choose(self, speed: float | None, stored_bytes: float, raw_bytes: float) -> Level:
        """For what is left beside the reads that run, with what the link can bring beside them."""
        as_stored = Level(AS_STORED, stored_bytes, 0.0)
        if speed is None:
            return as_stored  # reading is how it gets known
        levels = [as_stored]
        for codec, share in self._shares.items():
            kl = 0.0 if codec == LOSSLESS else self._allowed[codec].kl
            levels.append(Level(codec, raw_bytes * share, kl))
        left_s = max(self._deadline_s - self._owed_s, 0.0)
        running = sum(tokens for tokens, _ in self._running.values())
        tokens = max(self._left - running, 0.0)
        return choose_level(levels, tokens, left_s * speed - self._owed)

    def came(
        self,
        key: BlockKey,
        layers: tuple[int, int],
        level: str,
        sizes: tuple[int, int],
        part: float,
    ) -> None:
        """A read is over: `sizes` are the bytes that moved and those once decoded, `part` is how
        many of the tokens it was."""
        moved, raw = sizes
        with self._lock:
            self._running.pop((key, layers[0]), None)
            self._left = max(self._left - part, 0.0)
            self.sizes[level] += moved
            if level in self._shares:
                self._shares[level] = moved / raw
        self._on_read(key, *layers, level, moved)


class DeliveredLoad:
    """A reader's own view of a shared load: its layers come at the level that the delivery chooses.

    What came with loss stays here; the shared load, and what it promotes, is always the block as
    it is stored.
    """

    may_transcode = True

    def __init__(
        self,
        shared: StoreLoad,
        transcoder: Transcoder,
        delivery: Delivery,
        on_lost: Callable[[LostBlock], None],
    ) -> None:
        """`on_lost` is told of each answer that cannot be used."""
        self._on_lost = on_lost
        self.header = shared.header
        self.tier = shared.tier
        self._shared = shared
        self._transcoder = transcoder
        self._delivery = delivery
        self._mine: dict[int, memoryview] = {}
        self._turn = threading.Lock()

    @property
    def at_once(self) -> int:
        return self._shared.at_once

    def layers(self, start: int, stop: int) -> list[memoryview]:
        with self._turn:
            if any(layer not in self._mine for layer in range(start, stop)):
                runs = self._runs(start, stop)
                self._mine.update(zip(range(start, stop), runs, strict=True))
            return [self._mine[layer] for layer in range(start, stop)]

    def hidden(self, layer: int) -> memoryview | None:
        """As it is stored: rows that are computed from it must be the sender's."""
        return self._shared.hidden(layer)

    def _runs(self, start: int, stop: int) -> list[memoryview]:
        header = self.header
        if self._shared.is_read(start, stop) or not CODECS[header.codec].lossless:
            return self._as_stored(start, stop)
        sizes = header.size_bytes / header.id.num_tokens, header.shape.token_bytes
        read, tokens = (header.id.key, start), self._tokens(start, stop)
        with self._delivery.reading(self.tier, read, tokens, sizes) as level:
            runs = self._encoded(start, stop, level) if level != AS_STORED else None
            return self._as_stored(start, stop) if runs is None else runs

    def _tokens(self, start: int, stop: int) -> float:
        """How many of the delivery's tokens these layers are."""
        return self.header.id.num_tokens * (stop - start) / self.header.shape.num_layers

    def _as_stored(self, start: int, stop: int) -> list[memoryview]:
        ranges = [self.header.layer_range(layer) for layer in (start, stop - 1)]
        runs = self._shared.layers(start, stop)
        self._tell(start, stop, AS_STORED, ranges[1][1] - ranges[0][0])
        return runs

    def _encoded(self, start: int, stop: int, level: str) -> list[memoryview] | None:
        """None where the node cannot do it, or sent what is damaged: the block then comes as it is stored."""
        links, key = self._delivery.links, self.header.id.key
        most = (stop - start) * (self.header.run_bytes + _PER_LAYER_BYTES) + _PER_LAYER_BYTES
        data: bytes | memoryview | None = None
        with suppress(StoreError), links.side_by_side(self.tier, lambda: len(data or b"")):
            data = self._transcoder.transcode(key, start, stop, level, most)
        if data is None:
            return None
        try:
            runs = decode_layers(self.header, data, start, stop, level)
        except CorruptBlock as error:  # of the answer: the block itself may be whole
            self._on_lost(LostBlock(f"what {self.tier} sent as {level} is damaged: {error}"))
            return None
        self._shared.is_left_out = True
        self._tell(start, stop, level, len(data))
        return runs

    def _tell(self, start: int, stop: int, level: str, moved: int) -> None:
        raw, part = (stop - start) * self.header.run_bytes, self._tokens(start, stop)
        self._delivery.came(self.header.id.key, (start, stop - 1), level, (moved, raw), part)
