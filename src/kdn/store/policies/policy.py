"""The seam "which blocks go first when room is short": a policy is told what happens, and ranks blocks.

Here are also first in first out, the plain twin of all policies, and least recently used, the default.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from kdn.core import BlockKey

__all__ = ["EvictionPolicy", "Fifo", "Lru", "Use"]


@dataclass(frozen=True, slots=True)
class Use:
    """One block, used or to be stored, as a policy sees it.

    The blocks of one prompt are told of in order of `start`, without others between them where that
    can be had: a block that starts where the one before it stopped is taken to follow it.
    """

    key: BlockKey
    start: int
    """Tokens in front of the block."""
    num_tokens: int
    size_bytes: int
    at_s: float
    """Seconds on a clock that never goes back."""
    salt: str = ""

    @property
    def stop(self) -> int:
        """The position after its last token."""
        return self.start + self.num_tokens


class EvictionPolicy(ABC):
    """Orders the blocks of one tier. Holds keys, never bytes; its owner calls it under a lock.

    The owner calls `insert` when a block came in, `use` when one that is here was wanted again, `remove`
    when one left, for any reason; then `victims` ranks exactly the keys that are here.
    """

    name: str

    def admits(self, use: Use) -> bool:
        """Is the block worth the room it takes? Asked only when something would have to go."""
        return True

    def expired(self, now_s: float) -> list[BlockKey]:
        """Blocks that have to go now, however much room there is: they are too old."""
        return []

    @abstractmethod
    def insert(self, use: Use) -> None:
        """The block is here from now on."""

    @abstractmethod
    def use(self, use: Use) -> None:
        """The block, which is here, was wanted."""

    @abstractmethod
    def remove(self, key: BlockKey) -> None:
        """The block is here no more."""

    @abstractmethod
    def victims(self, now_s: float) -> Iterator[BlockKey]:
        """Every key that is here, the one to give up first in front.

        Valid until the policy is told of anything.
        """

    @abstractmethod
    def __len__(self) -> int:
        """How many blocks are here."""

    def check(self) -> None:
        """Audit the order. Raises AssertionError saying what does not add up."""
        keys = list(self.victims(float("inf")))
        assert len(keys) == len(set(keys)) == len(self), f"{self.name}: keys are ranked twice"


class Fifo(EvictionPolicy):
    """What came first goes first, used or not."""

    name = "fifo"

    def __init__(self) -> None:
        self._order: OrderedDict[BlockKey, None] = OrderedDict()

    def insert(self, use: Use) -> None:
        self._order[use.key] = None

    def use(self, use: Use) -> None:
        return

    def remove(self, key: BlockKey) -> None:
        self._order.pop(key, None)

    def victims(self, now_s: float) -> Iterator[BlockKey]:
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._order)


class Lru(Fifo):
    """What was not used for longest goes first."""

    name = "lru"

    def use(self, use: Use) -> None:
        self._order.move_to_end(use.key)
