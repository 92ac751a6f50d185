"""Rows of the catalogue as entries, and back: families by number, tokens veiled where they are to be."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable

from kdn.core import BlockKey, Cause, ChainHash, ContentId, Fingerprint, Recipe
from kdn.store.index.index import Entry, Family

__all__ = ["SELECT_ENTRY", "EntryRow", "Rows", "Veil", "stored_salts"]

SELECT_ENTRY = "SELECT family, key, behind, start, tokens, content FROM blocks"
EntryRow = tuple[int, BlockKey, ChainHash, int, bytes, ContentId]
"""What `SELECT_ENTRY` gives."""
Veil = Callable[[BlockKey, str, bytes], bytes]
"""veil(key, salt, tokens) hides tokens; veiled twice they are back."""
_VEILED = "\x01"
"""Begins the salt of a family whose rows hold veiled tokens."""


def stored_salts(salt: str) -> tuple[str, str]:
    """How a tenant's salt may stand in the table of families."""
    return salt, _VEILED + salt


class Rows:
    """Knows the families it has met. Raises sqlite3.Error when rows make no sense; its caller is the
    gate at which such errors become ours."""

    def __init__(self, veil: Veil | None) -> None:
        self._veil = veil
        self._veiled: set[int] = set()
        self._families: dict[int, Family] = {}

    def entries(self, reader: sqlite3.Connection, rows: Iterable[EntryRow]) -> tuple[Entry, ...]:
        """As `entry`, for all there are: families are few, so the common case does the least."""
        entries, seen, family = list[Entry](), None, None
        for row in rows:
            number = row[0]
            if number != seen:
                family = self._families.get(number) or self._read_family(reader, number)
                seen = number
            if family is not None and number not in self._veiled:
                entries.append(Entry._make((family, *row[1:])))  # a third quicker than by name
            elif (entry := self.entry(reader, row)) is not None:
                entries.append(entry)
        return tuple(entries)

    def entry(self, reader: sqlite3.Connection, row: EntryRow) -> Entry | None:
        """The row's entry; None when its tokens are veiled and we have no veil."""
        family = self._families.get(row[0]) or self._read_family(reader, row[0])
        if row[0] not in self._veiled:
            return Entry(family, *row[1:])
        if self._veil is None:
            return None
        key, behind, start, tokens, content = row[1:]
        return Entry(family, key, behind, start, self._veil(key, family.salt, tokens), content)

    def tokens_of(self, entry: Entry) -> bytes:
        """An entry's tokens as they are to be written."""
        if self._veil is None:
            return entry.tokens
        return self._veil(entry.key, entry.family.salt, entry.tokens)

    def family_id(self, writer: sqlite3.Connection, family: Family) -> int:
        """The family's number; it gets one if it has none."""
        row = (
            family.fingerprint,
            " ".join(family.recipe.causes),
            family.recipe.detail,
            family.salt if self._veil is None else _VEILED + family.salt,
        )
        writer.execute(
            """INSERT OR IGNORE INTO families (fingerprint, causes, detail, salt)
            VALUES (?, ?, ?, ?)""",
            row,
        )
        (number,) = writer.execute(
            "SELECT id FROM families WHERE (fingerprint, causes, detail, salt) = (?, ?, ?, ?)", row
        ).fetchone()
        return int(number)

    def _read_family(self, reader: sqlite3.Connection, number: int) -> Family:
        row = reader.execute(
            "SELECT fingerprint, causes, detail, salt FROM families WHERE id = ?", (number,)
        ).fetchone()
        if row is None:
            raise sqlite3.DatabaseError(f"blocks of family {number}, which is unknown")
        fingerprint, causes, detail, salt = row
        if salt.startswith(_VEILED):
            self._veiled.add(number)
        self._families[number] = _family(fingerprint, causes, detail, salt.removeprefix(_VEILED))
        return self._families[number]


def _family(fingerprint: str, causes: str, detail: str, salt: str) -> Family:
    try:
        recipe = Recipe(tuple(Cause(cause) for cause in causes.split()), detail)
    except ValueError as error:
        raise sqlite3.DatabaseError(str(error)) from error
    return Family(Fingerprint(fingerprint), recipe, salt)
