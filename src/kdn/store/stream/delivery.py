"""One request's stored KV, delivered by a deadline: each read in the best encoding that is in time.

    read    1    2    3    4 ...        the link gave, at the read before
    level  kept kept int8 int4          fast fast slow slower

What lies across a network where a node can encode it anew comes at any level; the rest comes as it
is kept.  The choice is `Adaptation`'s; here are the clock, the speed and the reads.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kdn.core import BlockKey
from kdn.errors import StoreError
from kdn.store.block.reader import StoreLoad
from kdn.store.codecs import CODECS
from kdn.store.stream.choose import Adaptation, Level
from kdn.store.stream.throughput import Links
from kdn.store.stream.transcode import decode_layers
from kdn.store.tiers.tier import Tier

__all__ = ["AS_STORED", "DeliveredLoad", "Delivery", "Loss"]

AS_STORED = "as kept"
"""The level of a block that comes in the encoding it is stored in."""

LOSSLESS = "lossless"
LOSSLESS_SHARE = 0.8
"""What the lossless codec leaves of KV until a read has shown it: bf16 KV of small models."""


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
        self._on_read = on_read
        self._lock = threading.Lock()

    @property
    def worst(self) -> str | None:
        """The codec of most loss that may be used; None: whatever comes is exact."""
        return max(self._allowed, key=lambda codec: self._allowed[codec].kl, default=None)

    def choose(self, tier: str, kept_token_bytes: float, raw_token_bytes: float) -> str:
        """The level of the next read from `tier`, of a block kept in that many bytes a token."""
        speed = self.links.last_bytes_per_s(tier)
        if speed is None:
            return AS_STORED  # reading is how it gets known
        with self._lock:
            levels = [Level(AS_STORED, kept_token_bytes, 0.0)]
            for codec, share in self._shares.items():
                kl = 0.0 if codec == LOSSLESS else self._allowed[codec].kl
                levels.append(Level(codec, raw_token_bytes * share, kl))
            adaptation = Adaptation(levels, self._deadline_s, max_kl=float("inf"))
            level = adaptation.choose(self._left, self.links.clock.now(), speed, None)
        assert level is not None, "without a prefill to compare with there is always one"
        return level.codec

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
            self._left = max(self._left - part, 0.0)
            self.sizes[level] += moved
            if level in self._shares:
                self._shares[level] = moved / raw
        self._on_read(key, *layers, level, moved)


class DeliveredLoad(StoreLoad):
    """A reader's own view of a shared load: its layers come at the level that the delivery chooses.

    What came with loss stays here; the shared load, and what it promotes, is always the block as
    it is kept.
    """

    may_transcode = True

    def __init__(self, shared: StoreLoad, tier: Tier, delivery: Delivery) -> None:
        self.header = shared.header
        self.tier = shared.tier
        self.shared = shared
        self._from = tier
        self._delivery = delivery
        self._mine: dict[int, memoryview] = {}
        self._turn = threading.Lock()

    def layers(self, start: int, stop: int) -> list[memoryview]:
        with self._turn:
            if any(layer not in self._mine for layer in range(start, stop)):
                runs = self._runs(start, stop)
                self._mine.update(zip(range(start, stop), runs, strict=True))
            return [self._mine[layer] for layer in range(start, stop)]

    def close(self) -> None:
        self.shared.close()

    def _runs(self, start: int, stop: int) -> list[memoryview]:
        header, token = self.header, self.header.shape.token_bytes
        kept = header.size_bytes / header.id.num_tokens
        level = AS_STORED
        if not self.shared.is_at_hand(start, stop) and CODECS[header.codec].lossless:
            level = self._delivery.choose(self.tier, kept, token)
        runs = self._encoded(start, stop, level) if level != AS_STORED else None
        return self._kept(start, stop) if runs is None else runs

    def _kept(self, start: int, stop: int) -> list[memoryview]:
        ranges = [self.header.layer_range(layer) for layer in (start, stop - 1)]
        runs = self.shared.layers(start, stop)
        self._tell(start, stop, AS_STORED, ranges[1][1] - ranges[0][0])
        return runs

    def _encoded(self, start: int, stop: int, level: str) -> list[memoryview] | None:
        """None where the node cannot do it: the block then comes as it is kept."""
        links, key = self._delivery.links, self.header.id.key
        began_s = links.clock.now()
        try:
            data = self._from.transcode(key, start, stop, level)
        except StoreError:
            return None
        if data is None:
            return None
        links.note(self.tier, len(data), links.clock.now() - began_s)
        runs = decode_layers(self.header, data, start, stop, level)
        self.shared.is_left_out = True
        self._tell(start, stop, level, len(data))
        return runs

    def _tell(self, start: int, stop: int, level: str, moved: int) -> None:
        layers, tokens = self.header.shape.num_layers, self.header.id.num_tokens
        raw = (stop - start) * self.header.run_bytes
        part = tokens * (stop - start) / layers
        self._delivery.came(self.header.id.key, (start, stop - 1), level, (moved, raw), part)
