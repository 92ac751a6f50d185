"""Reading the catalogue: rows as entries, totals, what any process changed, and SQLite's errors as ours."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdn.core import BlockKey, Cause, ChainHash, ContentId, Fingerprint, Recipe
from kdn.core.names import VEILED
from kdn.errors import NoSpace, StoreError
from kdn.store.index.index import Entry, Family
from kdn.store.policies import Use
from kdn.store.tiers.disk.schema import QUARANTINED, READ_BUSY_S, READY, connect
from kdn.store.tiers.tier import BlockLife, Changes, Holding

__all__ = [
    "CatalogueDamaged",
    "CatalogueReader",
    "Rows",
    "Totals",
    "Veil",
    "catalogue_errors",
    "read_totals",
]


class CatalogueDamaged(StoreError):
    """The catalogue's contents make no sense; it may be discarded and rebuilt."""


@dataclass(frozen=True)
class Totals:
    """Ready blocks and their tokens; bytes of all files, those being written included."""

    blocks: int
    tokens: int
    size_bytes: int


def read_totals(connection: sqlite3.Connection) -> Totals:
    """The totals that the triggers keep."""
    row = connection.execute("SELECT blocks, tokens, size FROM totals").fetchone()
    if row is None:
        raise sqlite3.DatabaseError("it has no totals")
    blocks, tokens, size = row
    (writing,) = connection.execute("SELECT coalesce(sum(size), 0) FROM writing").fetchone()
    return Totals(blocks, tokens, size + writing)


@contextmanager
def catalogue_errors(path: Path) -> Iterator[None]:
    """The only place where SQLite's errors become ours."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError, OverflowError) as error:
        # of an extended code the lower byte says the kind; without one Python refused a value or a text
        code = getattr(error, "sqlite_errorcode", None)
        kind = None if code is None else code & 0xFF
        if kind == sqlite3.SQLITE_FULL:
            raise NoSpace(f"{path}: {error}; free some space") from error
        if kind in _UNUSABLE or isinstance(error, sqlite3.ProgrammingError):
            raise StoreError(
                f"the catalogue {path} cannot be used ({error}): check that its folder can be"
                " written, that its disk has space left, and that no other program holds it"
            ) from error
        raise CatalogueDamaged(
            f"the catalogue {path} is damaged ({error}): stop every kdn on this store and"
            " start again, then it is rebuilt from the blocks"
        ) from error


_UNUSABLE = {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_AUTH,
}
"""It is the machine or another process; any other error means that the contents make no sense."""


SELECT_ENTRY = "SELECT family, key, behind, start, tokens, content FROM blocks"
EntryRow = tuple[int, BlockKey, ChainHash, int, bytes, ContentId]
"""What `SELECT_ENTRY` gives."""
Veil = Callable[[BlockKey, str, bytes], bytes]
"""veil(key, salt, tokens) hides tokens; veiled twice they are back."""


_MOST_FAMILIES = 10_000
"""Of those that were met, each with its salt: any request may name a new one."""


def _stored_salts(salt: str) -> tuple[str, str]:
    """How a tenant's salt may stand in the table of families."""
    return salt, VEILED + salt


class Rows:
    """Knows the families it has met. Raises sqlite3.Error when rows make no sense; its caller is the
    gate at which such errors become ours."""

    def __init__(self, veil: Veil | None) -> None:
        self._veil = veil
        self._families: dict[int, tuple[Family, bool]] = {}
        """Each with: are its rows' tokens veiled?"""

    def entries(self, reader: sqlite3.Connection, rows: Iterable[EntryRow]) -> tuple[Entry, ...]:
        """As `entry`, for all there are: families are few, so the common case does the least."""
        entries, seen, family, is_veiled = list[Entry](), None, None, False
        for row in rows:
            if row[0] != seen:
                seen = row[0]
                family, is_veiled = self._family(reader, seen)
            if family is not None and not is_veiled:
                entries.append(Entry._make((family, *row[1:])))  # a third quicker than by name
            elif (entry := self.entry(reader, row)) is not None:
                entries.append(entry)
        return tuple(entries)

    def entry(self, reader: sqlite3.Connection, row: EntryRow) -> Entry | None:
        """The row's entry; None when its tokens are veiled and we have no veil."""
        family, is_veiled = self._family(reader, row[0])
        if not is_veiled:
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
            family.salt if self._veil is None else VEILED + family.salt,
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

    def forget_families(self) -> None:
        """Read them again when they are met: their numbers may name others from now on."""
        self._families.clear()

    def check_family(self, reader: sqlite3.Connection, number: int) -> None:
        """Raises sqlite3.DatabaseError when that family makes no sense."""
        self._read_family(reader, number)

    def _family(self, reader: sqlite3.Connection, number: int) -> tuple[Family, bool]:
        return self._families.get(number) or self._read_family(reader, number)

    def _read_family(self, reader: sqlite3.Connection, number: int) -> tuple[Family, bool]:
        row = reader.execute(
            "SELECT fingerprint, causes, detail, salt FROM families WHERE id = ?", (number,)
        ).fetchone()
        if row is None:
            raise sqlite3.DatabaseError(f"blocks of family {number}, which is unknown")
        fingerprint, causes, detail, salt = row
        family = _family(fingerprint, causes, detail, salt.removeprefix(VEILED))
        if len(self._families) >= _MOST_FAMILIES:
            self.forget_families()
        self._families[number] = found = family, salt.startswith(VEILED)
        return found


class CatalogueReader:
    """One process's view of the shared catalogue. Raises StoreError when it cannot be used.

    Has a connection of its own: looking for changes never waits for a writer, of this process or another.
    `knows` and `totals` say what was seen last, and wait for nothing.
    """

    def __init__(self, path: Path, rows: Rows) -> None:
        self._path = path
        self._rows = rows
        self._lock = threading.RLock()
        self._known: set[BlockKey] = set()
        self._seen_version: int | None = None
        self._seen_change: int | None = None
        self.totals = Totals(0, 0, 0)
        """As of the last look, or of this process's last change."""
        self._connection = connect(path, READ_BUSY_S)

    def knows(self, key: BlockKey) -> bool:
        """Was the block ready when changes were last asked for?"""
        return key in self._known

    def keys(self) -> list[BlockKey]:
        """Every ready block's key."""
        # from the index of keys alone: rows, with their tokens, are many times as large
        rows = self._select("SELECT key FROM blocks")
        damaged = set(self.quarantined())
        return [key for (key,) in rows if key not in damaged]

    def sizes(self) -> dict[BlockKey, int]:
        """What every ready block's row says of its file's size."""
        rows = self._select("SELECT key, size FROM blocks WHERE +state = ?", READY)
        return {BlockKey(key): size for key, size in rows}

    def quarantined(self) -> list[BlockKey]:
        """Every quarantined block's key."""
        return [
            key for (key,) in self._select("SELECT key FROM blocks WHERE state = ?", QUARANTINED)
        ]

    def uses(self) -> list[tuple[Use, float]]:
        """Every ready block with the wall time of its last use, oldest first."""
        rows = self._select(
            """SELECT key, start, length(tokens) / 4, size, salt, used FROM blocks
            JOIN families ON families.id = family WHERE state = ? ORDER BY used, blocks.rowid""",
            READY,
        )
        return [
            (Use(BlockKey(key), start, tokens, size, 0.0, salt.removeprefix(VEILED)), used)
            for key, start, tokens, size, salt, used in rows
        ]

    def lives_by_key(
        self, wall_s: float, unsaved: Mapping[BlockKey, int]
    ) -> dict[BlockKey, BlockLife]:
        """How long each ready block has been here, and how often it was used, `unsaved` uses included."""
        rows = self._select(
            "SELECT key, start, length(tokens) / 4, size, max(0.0, ? - created), hits FROM blocks"
            " WHERE state = ?",
            wall_s,
            READY,
        )
        return {
            BlockKey(key): BlockLife(start, tokens, size, age_s, hits + unsaved.get(key, 0))
            for key, start, tokens, size, age_s, hits in rows
        }

    def holdings(self, salt: str) -> list[Holding]:
        """A tenant's ready blocks, least recently used first."""
        rows = self._select(
            """SELECT key, size FROM blocks JOIN families ON families.id = family
            WHERE salt IN (?, ?) AND state = ? ORDER BY used, blocks.rowid""",
            *_stored_salts(salt),
            READY,
        )
        return [Holding(BlockKey(key), size) for key, size in rows]

    def capacity_bytes(self) -> int | None:
        """The cap that was last set, by any process; None when none ever was."""
        ((capacity_bytes,),) = self._select("SELECT capacity FROM totals")
        return None if capacity_bytes is None else int(capacity_bytes)

    def check_families(self) -> None:
        """Read every family. Raises CatalogueDamaged when one makes no sense."""
        with self._lock, catalogue_errors(self._path):
            for (number,) in self._connection.execute("SELECT id FROM families").fetchall():
                self._rows.check_family(self._connection, number)

    def changes(self) -> Changes:
        """What any process changed since the last call; the first call tells of every block."""
        with self._lock, catalogue_errors(self._path):
            (version,) = self._connection.execute("PRAGMA data_version").fetchone()
            if version == self._seen_version:
                return Changes()
            self._connection.execute("BEGIN")
            try:
                changes = self._read_changes()
                self.totals = read_totals(self._connection)
            finally:
                self._connection.execute("COMMIT")
            self._seen_version = version
            return changes

    def left_keys(self) -> frozenset[BlockKey]:
        """The keys of the log of changes that no ready block has."""
        rows = self._select(
            "SELECT DISTINCT key FROM changes WHERE key NOT IN (SELECT key FROM blocks WHERE state = ?)",
            READY,
        )
        return frozenset(BlockKey(key) for (key,) in rows)

    def refresh_totals(self) -> Totals:
        """The totals now."""
        with self._lock, catalogue_errors(self._path):
            self.totals = read_totals(self._connection)
            return self.totals

    def close(self) -> None:
        self._connection.close()

    def _select(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock, catalogue_errors(self._path):
            return self._connection.execute(query, values).fetchall()

    def _read_changes(self) -> Changes:
        (last,) = self._connection.execute("SELECT coalesce(max(seq), 0) FROM changes").fetchone()
        (first,) = self._connection.execute("SELECT coalesce(min(seq), 0) FROM changes").fetchone()
        seen = self._seen_change
        stale = seen is None or first > seen + 1
        changes = self._read_all() if stale else self._read_since(seen)
        self._seen_change = last
        return changes

    def _read_since(self, seen: int | None) -> Changes:
        reader, added, removed = self._connection, [], []
        rows = reader.execute("SELECT DISTINCT key FROM changes WHERE seq > ?", (seen,))
        for (key,) in rows.fetchall():
            row = reader.execute(f"{SELECT_ENTRY} WHERE key = ? AND state = ?", (key, READY))
            found = row.fetchone()
            entry = None if found is None else self._rows.entry(reader, found)
            if entry is None:
                removed.append(BlockKey(key))
            else:
                added.append(entry)
        self._known.update(entry.key for entry in added)
        self._known.difference_update(removed)
        return Changes(tuple(added), tuple(removed))

    def _read_all(self) -> Changes:
        # + keeps the index by state and age out of it: the table is read in its own order
        rows = self._connection.execute(f"{SELECT_ENTRY} WHERE +state = ?", (READY,))
        added = self._rows.entries(self._connection, rows)
        known = {entry.key for entry in added}
        removed = tuple(self._known - known)
        self._known = known
        return Changes(added, removed)


def _family(fingerprint: str, causes: str, detail: str, salt: str) -> Family:
    try:
        recipe = Recipe(tuple(Cause(cause) for cause in causes.split()), detail)
    except ValueError as error:
        raise sqlite3.DatabaseError(str(error)) from error
    return Family(Fingerprint(fingerprint), recipe, salt)
