"""One encoded block, held open for reading: what every tier gives, and what every reader takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdn.store.block.format import Header

__all__ = ["BytesHandle", "Handle"]


class Handle(ABC):
    """One encoded block, held open.

    `buffer` has the block's length; only what was read is filled.  `header` is there where the tier
    has it in memory, checked.
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

    def is_read(self, start: int, stop: int) -> bool:
        """Were these bytes read already, as part of something larger?"""
        return False

    @abstractmethod
    def close(self) -> None:
        """Give back what the handle holds. May be called twice."""
        ...


class BytesHandle(Handle):
    """A block that is in memory already."""

    def __init__(self, data: memoryview, header: Header | None = None) -> None:
        self.buffer = data
        self.header = header

    def read(self, start: int, stop: int) -> memoryview:
        return self.buffer[start:stop]

    def close(self) -> None:
        return
