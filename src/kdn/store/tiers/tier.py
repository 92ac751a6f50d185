"""The seam "where are the bytes": a tier keeps encoded blocks by key."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kdn.core import BlockKey
from kdn.store.block.format import EncodedBlock, Header
from kdn.store.index.index import Entry
from kdn.store.tenants.quotas import Holding

__all__ = ["Changes", "Handle", "Life", "NoTier", "Spare", "Tier", "TierUsage"]

Spare = Callable[[BlockKey], bool]
"""Says which blocks may not be evicted just now."""


@dataclass(frozen=True)
class TierUsage:
    """What a tier holds. `evicted` counts the blocks it gave up for room since it was opened."""

    blocks: int
    tokens: int
    size_bytes: int
    capacity_bytes: int | None
    """None: the tier has no cap of ours."""
    evicted: int = 0


@dataclass(frozen=True)
class Changes:
    """Blocks that came into a tier, and keys that left it."""

    added: tuple[Entry, ...] = ()
    removed: tuple[BlockKey, ...] = ()


class Life(NamedTuple):
    """What a tier remembers of a block it holds: enough to say what it cost and saved."""

    start: int
    num_tokens: int
    size_bytes: int
    age_s: float
    """Since it was written."""
    uses: int


class Handle(ABC):
    """One encoded block, held open.

    `buffer` has the block's length; only what was read is filled.  `header` is there where the tier
    has it at hand, checked.
    """

    buffer: memoryview
    header: Header | None = None
    moved_bytes: int | None = None
    """What was moved for all reads so far, where that is not what was asked for."""

    @abstractmethod
    def read(self, start: int, stop: int) -> memoryview:
        """Bytes [start, stop) of the block: a view into `buffer`, valid after close.

        Raises CorruptBlock when the tier cannot give them, LostBlock when it is the tier that
        failed and not the block. Safe from several threads.
        """
        ...

    def is_at_hand(self, start: int, stop: int) -> bool:
        """Were these bytes read already, as part of something larger?"""
        return False

    @abstractmethod
    def close(self) -> None:
        """Give back what the handle holds. May be called twice."""
        ...


class Tier(ABC):
    """Keeps encoded blocks. Not finding one is an answer (None), not an error.

    All calls are safe from several threads.
    """

    name: str
    trusted: bool
    """Were the bytes verified on the way in, in a place where they cannot change since?"""
    far: bool = False
    """Is it across a network? Then it is written behind, and may fail while others are well."""

    transcodes: bool = False
    """Can it give layers in another encoding than the one they are kept in?"""

    @abstractmethod
    def open(self, key: BlockKey) -> Handle | None:
        """The block, held open: it can be read to its end even if it is dropped meanwhile.

        None when it is not here. Raises CorruptBlock when what is here cannot be a block, and
        StoreError when the tier cannot be asked.
        """
        ...

    @abstractmethod
    def put(self, block: EncodedBlock, spare: Spare) -> None:
        """Keep `block`, evicting others except those that `spare` names. Returns once it is kept
        as durably as the tier can; keeping a block twice is the same as once.

        Raises NoSpace, having evicted nothing, when it does not fit.
        """
        ...

    @abstractmethod
    def drop(self, key: BlockKey) -> bool:
        """Forget a block; False when it was not here."""
        ...

    @abstractmethod
    def holds(self, key: BlockKey) -> bool:
        """Is the block here, as far as is known without asking anybody?"""
        ...

    @abstractmethod
    def changes(self) -> Changes:
        """What came and went since the last call, by whatever hand; the first call tells all.

        A key may be told of more than once, and may be gone again: `holds` decides.
        """
        ...

    @abstractmethod
    def usage(self) -> TierUsage:
        """How full the tier is."""
        ...

    def transcode(self, key: BlockKey, start: int, stop: int, codec: str) -> bytes | None:
        """Layers [start, stop) encoded anew, for `decode_layers`; None where that cannot be had.

        Raises StoreError when the tier cannot be asked.
        """
        return None

    def reachable(self) -> bool:
        """Would the tier be asked just now? False while it is given a rest after failures."""
        return True

    def touch(self, key: BlockKey) -> None:
        """Note that the block was used."""
        return

    def quarantine(self, key: BlockKey) -> None:
        """Take a damaged block out of use; a tier that can keeps it aside for inspection."""
        self.drop(key)

    def block_keys(self) -> Iterator[BlockKey]:
        """Every key that is here."""
        return iter(())

    def holdings(self, salt: str) -> Sequence[Holding]:
        """A tenant's blocks with their sizes, least recently used first."""
        return ()

    def replace(self, block: EncodedBlock, spare: Spare) -> None:
        """Keep `block` in place of the one of the same key. Raises as `put`."""
        self.drop(block.key)
        self.put(block, spare)

    def lives(self) -> list[Life]:
        """How long each block has been here and how often it was used, where that is written down."""
        return []

    def save(self) -> None:
        """Write down what is only remembered (when blocks were used)."""
        return

    def check(self) -> None:
        """Audit the books. Raises AssertionError saying what does not add up."""
        return

    def close(self) -> None:
        """Give back what the tier holds of the machine. Its blocks stay where they last."""
        return


class NoTier(Tier):
    """Keeps nothing: the baseline every hit rate is measured against."""

    name = "none"
    trusted = True

    def open(self, key: BlockKey) -> Handle | None:
        return None

    def put(self, block: EncodedBlock, spare: Spare) -> None:
        return None

    def drop(self, key: BlockKey) -> bool:
        return False

    def holds(self, key: BlockKey) -> bool:
        return False

    def changes(self) -> Changes:
        return Changes()

    def usage(self) -> TierUsage:
        return TierUsage(0, 0, 0, 0)
