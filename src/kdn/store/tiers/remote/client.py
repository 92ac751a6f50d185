"""The seam "a place across a network": bytes and a note by key, range reads, what changed."""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

from kdn.core import BlockKey
from kdn.store.tiers.seal import MAX_SEALED_BYTES

if TYPE_CHECKING:
    from kdn.store.settings import FarSettings

__all__ = [
    "LISTING_S",
    "MAX_LISTED",
    "MAX_LISTING_BYTES",
    "ROW_BYTES",
    "Listed",
    "Remote",
    "RemoteChanges",
    "block_key",
    "first_rows",
    "listed",
]


MAX_LISTED = 1 << 17
"""More blocks than this are not followed: a listing that never ends ends here."""
MAX_LISTING_BYTES = MAX_LISTED << 11
"""256 MiB. A block's key and note are some 1.3 KiB, most of it the tokens; a longer listing is not read."""
LISTING_S = 120.0
"""When a listing must have come: 256 MiB take 21 s at 100 Mbit/s, and nobody waits for it."""
ROW_BYTES = 96
"""A row of a listing, without its note."""
MAX_NOTE_BYTES = (1 << 16) + 64
"""Sealed, it is a little longer than it is open."""
_KEY = re.compile("[0-9a-f]{64}")
_Key = TypeVar("_Key")
_log = logging.getLogger(__name__)


def block_key(given: str | bytes) -> BlockKey | None:
    """The key that others wrote, or None when it is none: any program may write where we do."""
    try:
        text = given if isinstance(given, str) else given.decode("ascii")
    except UnicodeDecodeError:
        return None
    return BlockKey(text) if _KEY.fullmatch(text) else None


class Listed(NamedTuple):
    """A stored block as a remote lists it; `note` is what its writer said of it."""

    key: BlockKey
    note: bytes
    size_bytes: int
    """0 where the remote does not say: such a block counts under no cap, and none drops it."""


def listed(given: str | bytes, sized: bytes) -> Listed | None:
    """A block from its key, and its size in eight bytes before its note; None for anything else."""
    key = block_key(given)
    if key is None or not 8 < len(sized) <= 8 + MAX_NOTE_BYTES:
        return None
    size_bytes = int.from_bytes(sized[:8], "little")
    return Listed(key, sized[8:], size_bytes) if size_bytes <= MAX_SEALED_BYTES else None


def first_rows(rows: Iterable[tuple[_Key, bytes]]) -> Iterator[tuple[_Key, bytes]]:
    """As many rows of (key, note) as a listing may have; says so where there are more."""
    left_bytes = MAX_LISTING_BYTES
    for number, row in enumerate(rows):
        left_bytes -= ROW_BYTES + len(row[1])
        if number == MAX_LISTED or left_bytes < 0:
            _log.warning("a listing ends after %d blocks; those after them are not found", number)
            return
        yield row


@dataclass(frozen=True)
class RemoteChanges:
    """What came and went since the last time; `whole` says that `added` is all there is.

    `foreign` counts what lies among ours and is not ours: it was passed over.
    """

    added: tuple[Listed, ...] = ()
    removed: tuple[BlockKey, ...] = ()
    whole: bool = False
    foreign: int = 0


class Remote(ABC):
    """Blocks on the other side of a network. Raises Unreachable; any other error counts as that, too.

    One that answers, and refuses a write or a removal, raises NoSpace: that is no failure of the remote,
    which is read on. A block that is there and cannot be read now raises LostBlock.

    What it gives is believed by nobody: keys, sizes and bytes may be anything.
    Safe from several threads. Every call ends by itself, within a time-out of the remote's own.
    """

    name: str
    transcodes: bool = False
    """Can it give layers in another encoding than the stored one?"""
    seals_itself: bool = False
    """Does the other side seal blocks at rest, so that they are sent as they are?"""
    lists_all: bool = False
    """Does asking for changes cost a listing of everything? Then it is asked seldom."""

    @classmethod
    @abstractmethod
    def from_settings(cls, settings: FarSettings) -> Self | None:
        """The remote that the settings describe; None where they name none.

        Raises BadConfig, MissingExtra.
        """

    @abstractmethod
    def head(self, key: BlockKey, num_bytes: int) -> tuple[bytes, int] | None:
        """The first `num_bytes` (or fewer, if it is shorter) and the size; None if it is not there."""

    @abstractmethod
    def read(self, key: BlockKey, start: int, stop: int) -> bytes | memoryview:
        """Bytes [start, stop); fewer, or none, when they are not there (any more)."""

    @abstractmethod
    def write(self, key: BlockKey, note: bytes, data: memoryview) -> None:
        """Store a block: all of it or nothing is seen by others. Storing it twice is harmless."""

    @abstractmethod
    def remove(self, key: BlockKey) -> bool:
        """Remove a block; False when it was not there."""

    @abstractmethod
    def changes(self) -> RemoteChanges:
        """What changed since the last call, by any process; the first call tells all."""

    def transcode(
        self, key: BlockKey, start: int, stop: int, codec: str, max_bytes: int
    ) -> bytes | memoryview | None:
        """Layers [start, stop) in another encoding, `max_bytes` at most; None when they cannot be had so."""
        return None

    def close(self) -> None:
        """Give back connections."""
        return
