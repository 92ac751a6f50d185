"""What came into a store and left it, numbered, for those who follow it from afar."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from kdn.core import BlockKey
from kdn.store.index.index import Entry, Index

__all__ = ["IndexJournal", "Pages"]

KEEP = 10_000


@dataclass(frozen=True)
class Pages:
    """Changes since a cursor; `whole` says that `added` is all there is."""

    cursor: str
    added: tuple[Entry, ...] = ()
    removed: tuple[tuple[BlockKey, str], ...] = ()
    """Key and salt: a tenant must not learn what another one had."""
    whole: bool = False


class IndexJournal:
    """The last changes of one store since it was opened. Not safe from several threads by itself.

    A cursor is good for one opening of the store; any other one is answered with everything.
    """

    def __init__(self, keep: int = KEEP) -> None:
        self._epoch = secrets.token_hex(8)
        self._changed: deque[tuple[BlockKey, str]] = deque(maxlen=keep)
        self._count = 0

    def note(self, entries: Iterable[Entry]) -> None:
        """These came or went."""
        known = list(entries)
        self._count += len(known)
        keep = self._changed.maxlen or 0
        self._changed.extend((entry.key, entry.family.salt) for entry in known[-keep:])

    def since(self, cursor: str, index: Index) -> Pages:
        """What changed since `cursor` (empty: since ever), as `index` has it now."""
        now = f"{self._epoch}.{self._count}"
        missed = self._missed(cursor)
        if missed is None:
            return Pages(now, tuple(index), whole=True)
        names = dict.fromkeys(list(self._changed)[len(self._changed) - missed :])
        entries = [(name, index.get(name[0])) for name in names]
        added = tuple(entry for _, entry in entries if entry is not None)
        return Pages(now, added, tuple(name for name, entry in entries if entry is None))

    def _missed(self, cursor: str) -> int | None:
        """How many changes the cursor's owner has not seen; None when they are not all here."""
        epoch, _, number = cursor.partition(".")
        if epoch != self._epoch or not number.isdecimal():
            return None
        missed = self._count - int(number)
        return missed if 0 <= missed <= len(self._changed) else None
