"""The catalogue: one SQLite row a block, shared by every process on the store's folder.

It decides what fits: room is reserved here, in one transaction, before a byte is written, so the
cap holds for all processes together.  Triggers keep the totals and the log of changes, so that no
statement can forget them.  It is never the only copy of anything but ages: lost, it is rebuilt from
the blocks.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from kdn.core import BlockKey
from kdn.errors import NoSpace, StoreError
from kdn.store.index.index import Entry
from kdn.store.policies import Use
from kdn.store.tenants.quotas import Holding
from kdn.store.tiers.disk.rows import SELECT_ENTRY, Rows, Veil, stored_salts
from kdn.store.tiers.disk.schema import QUARANTINED, READY, connect, prepare
from kdn.store.tiers.tier import Changes, Life, Spare

__all__ = ["Catalogue", "CatalogueDamaged", "Totals", "Victim", "discard_catalogue"]

KEEP_CHANGES = 10_000


class CatalogueDamaged(StoreError):
    """The catalogue's contents make no sense; it may be discarded and rebuilt."""


@dataclass(frozen=True)
class Totals:
    """Ready blocks and their tokens; bytes of all files, those being written included."""

    blocks: int
    tokens: int
    size_bytes: int


@dataclass(frozen=True)
class Victim:
    """A block that was given up for room."""

    key: BlockKey
    size_bytes: int
    quarantined: bool


class Catalogue:
    """One process's way to the shared catalogue. Raises StoreError when it cannot be used.

    Writing and reading go through connections of their own: looking for changes never waits for a
    writer, be it this process's or another's.
    """

    def __init__(
        self, path: Path, owner: str, now: Callable[[], float], veil: Veil | None = None
    ) -> None:
        """With `veil` tokens are written veiled; rows of whoever veiled them are passed over
        without it, as if they were not there."""
        self._path = path
        self._rows = Rows(veil)
        self._owner = owner
        self._now = now
        self._writing = threading.RLock()
        self._reading = threading.RLock()
        self._noting = threading.Lock()
        self._used: dict[BlockKey, tuple[float, int]] = {}
        self._known: set[BlockKey] = set()
        self._ranking: Callable[[], Iterable[BlockKey]] = tuple
        self._seen_version: int | None = None
        self._seen_change: int | None = None
        with self._gate(), ExitStack() as undo:
            self._writer = connect(path)
            undo.callback(self._writer.close)
            prepare(self._writer)
            self._reader = connect(path)
            undo.pop_all()

    def rank_by(self, ranking: Callable[[], Iterable[BlockKey]]) -> None:
        """Give up blocks in this order; those it leaves out follow by age."""
        self._ranking = ranking

    # --- looking ---

    def uses(self) -> list[tuple[Use, float]]:
        """Every ready block with the wall time of its last use, oldest first."""
        with self._reading, self._gate():
            rows = self._reader.execute(
                """SELECT key, start, length(tokens) / 4, size, salt, used FROM blocks
                JOIN families ON families.id = family WHERE state = ? ORDER BY used, blocks.rowid""",
                (READY,),
            )
            return [
                (Use(BlockKey(key), start, tokens, size, 0.0, salt), used)
                for key, start, tokens, size, salt, used in rows
            ]

    def lives(self) -> list[Life]:
        """How long each ready block has been here, and how often it was used."""
        self.save()
        with self._reading, self._gate():
            rows = self._reader.execute(
                "SELECT start, length(tokens) / 4, size, ? - created, hits FROM blocks"
                " WHERE state = ?",
                (self._now(), READY),
            )
            return [Life(*row) for row in rows]

    def knows(self, key: BlockKey) -> bool:
        """Was the block ready when changes were last asked for?"""
        return key in self._known

    def keys(self) -> list[BlockKey]:
        """Every ready block's key."""
        with self._reading, self._gate():
            # from the index of keys alone: rows, with their tokens, are many times as large
            rows = self._reader.execute("SELECT key FROM blocks").fetchall()
        damaged = set(self.quarantined())
        return [key for (key,) in rows if key not in damaged]

    def quarantined(self) -> list[BlockKey]:
        """Every quarantined block's key."""
        return self._keys(QUARANTINED)

    def changes(self) -> Changes:
        """What any process changed since the last call; the first call tells of every block."""
        with self._reading, self._gate():
            (version,) = self._reader.execute("PRAGMA data_version").fetchone()
            if version == self._seen_version:
                return Changes()
            self._reader.execute("BEGIN")
            try:
                changes = self._read_changes()
            finally:
                self._reader.execute("COMMIT")
            self._seen_version = version
            return changes

    def capacity_bytes(self) -> int | None:
        """The cap that was last set, by any process; None when none ever was."""
        with self._reading, self._gate():
            (capacity_bytes,) = self._reader.execute("SELECT capacity FROM totals").fetchone()
            return None if capacity_bytes is None else int(capacity_bytes)

    def holdings(self, salt: str) -> list[Holding]:
        """A tenant's ready blocks, least recently used first."""
        with self._reading, self._gate():
            rows = self._reader.execute(
                """SELECT key, size FROM blocks JOIN families ON families.id = family
                WHERE salt IN (?, ?) AND state = ? ORDER BY used, blocks.rowid""",
                (*stored_salts(salt), READY),
            )
            return [Holding(BlockKey(key), size) for key, size in rows]

    def totals(self) -> Totals:
        with self._reading, self._gate():
            return _totals(self._reader)

    # --- changing ---

    def reserve(
        self, size_bytes: int, capacity_bytes: int, spare: Spare, unlink: Callable[[Victim], None]
    ) -> int:
        """Make sure that `size_bytes` more fit, and return the number of the reservation.

        What must go for it is unlinked before its row goes and before the reservation counts: the
        files never exceed the cap.  Raises NoSpace, having changed nothing, when it cannot be done.
        """
        self.save()
        with self._transaction():
            self._make_room(size_bytes, capacity_bytes, spare, unlink)
            row = (self._owner, size_bytes)
            cursor = self._writer.execute("INSERT INTO writing (owner, size) VALUES (?, ?)", row)
            assert cursor.lastrowid is not None
            return cursor.lastrowid

    def publish(
        self,
        reservation: int | None,
        entry: Entry,
        size_bytes: int,
        wall_s: float,
        place: Callable[[], None] = lambda: None,
    ) -> None:
        """Have the block's file put in its place, and turn the reservation into a row.

        Both in one transaction: two processes may put the same block in different codecs, and the
        row has to tell the size of the file that came last.
        """
        with self._transaction():
            place()
            self._writer.execute("DELETE FROM writing WHERE id = ?", (reservation,))
            self._writer.execute(
                """INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0) ON CONFLICT (key)
                DO UPDATE SET state = excluded.state, size = excluded.size, used = excluded.used""",
                (
                    entry.key,
                    self._rows.family_id(self._writer, entry.family),
                    entry.after,
                    entry.start,
                    self._rows.tokens_of(entry),
                    entry.content,
                    size_bytes,
                    READY,
                    wall_s,
                    wall_s,
                ),
            )
            self._writer.execute(
                "DELETE FROM changes WHERE seq <= (SELECT max(seq) FROM changes) - ?",
                (KEEP_CHANGES,),
            )

    def cancel(self, reservation: int) -> None:
        """Nothing came of the reservation."""
        with self._transaction():
            self._writer.execute("DELETE FROM writing WHERE id = ?", (reservation,))

    def remove(self, key: BlockKey, unlink: Callable[[], bool]) -> bool:
        """Take a block's row out unless `unlink` says that its file is to stay."""
        with self._transaction():
            if not unlink():
                return False
            cursor = self._writer.execute("DELETE FROM blocks WHERE key = ?", (key,))
            return cursor.rowcount > 0

    def quarantine(self, key: BlockKey, move: Callable[[], int]) -> None:
        """Take a block out of use; its file, moved aside, still counts and is the first to go.

        `move` returns the file's size: damage may have changed it.
        """
        with self._transaction():
            row = (QUARANTINED, move(), key)
            self._writer.execute("UPDATE blocks SET state = ?, size = ? WHERE key = ?", row)

    def touch(self, key: BlockKey) -> None:
        """Note a use. Written down with the next change, or by `save`."""
        with self._noting:
            _, hits = self._used.get(key, (0.0, 0))
            self._used[key] = (self._now(), hits + 1)

    def save(self) -> None:
        """Write down the uses that are only remembered."""
        if self._used:
            with self._transaction():
                self._save_uses()

    def bury(self, living: list[str]) -> None:
        """Give back what processes not among `living` had reserved."""
        with self._transaction():
            owners = self._writer.execute("SELECT DISTINCT owner FROM writing").fetchall()
            dead = [row for row in owners if row[0] not in living]
            self._writer.executemany("DELETE FROM writing WHERE owner = ?", dead)

    def set_capacity(
        self, capacity_bytes: int, spare: Spare, unlink: Callable[[Victim], None]
    ) -> None:
        """Remember the cap, and evict down to it."""
        with self._transaction():
            self._writer.execute("UPDATE totals SET capacity = ?", (capacity_bytes,))
            self._make_room(0, capacity_bytes, spare, unlink)

    def check(self) -> None:
        """Audit the books. Raises AssertionError saying what does not add up."""
        with self._writing, self._gate():
            counted = self._writer.execute(
                """SELECT total(state = ?), total((state = ?) * length(tokens) / 4), total(size)
                FROM blocks""",
                (READY, READY),
            ).fetchone()
            booked = self._writer.execute("SELECT blocks, tokens, size FROM totals").fetchone()
            assert tuple(map(int, counted)) == booked, f"counted {counted}, booked {booked}"

    def close(self) -> None:
        try:
            self.save()
        finally:
            self._reader.close()
            self._writer.close()

    # --- inside ---

    def _keys(self, state: int) -> list[BlockKey]:
        with self._reading, self._gate():
            rows = self._reader.execute("SELECT key FROM blocks WHERE state = ?", (state,))
            return [key for (key,) in rows]

    def _read_changes(self) -> Changes:
        (last,) = self._reader.execute("SELECT coalesce(max(seq), 0) FROM changes").fetchone()
        (first,) = self._reader.execute("SELECT coalesce(min(seq), 0) FROM changes").fetchone()
        seen = self._seen_change
        stale = seen is None or first > seen + 1
        changes = self._read_all() if stale else self._read_since(seen)
        self._seen_change = last
        return changes

    def _read_since(self, seen: int | None) -> Changes:
        rows = self._reader.execute("SELECT DISTINCT key FROM changes WHERE seq > ?", (seen,))
        added, removed = [], []
        for (key,) in rows.fetchall():
            row = self._reader.execute(f"{SELECT_ENTRY} WHERE key = ? AND state = ?", (key, READY))
            found = row.fetchone()
            entry = None if found is None else self._rows.entry(self._reader, found)
            if entry is None:
                removed.append(BlockKey(key))
            else:
                added.append(entry)
        self._known.update(entry.key for entry in added)
        self._known.difference_update(removed)
        return Changes(tuple(added), tuple(removed))

    def _read_all(self) -> Changes:
        # + keeps the index by state and age out of it: the table is read in its own order
        rows = self._reader.execute(f"{SELECT_ENTRY} WHERE +state = ?", (READY,))
        added = self._rows.entries(self._reader, rows)
        known = {entry.key for entry in added}
        removed = tuple(self._known - known)
        self._known = known
        return Changes(added, removed)

    def _make_room(
        self, size_bytes: int, capacity_bytes: int, spare: Spare, unlink: Callable[[Victim], None]
    ) -> None:
        excess = _totals(self._writer).size_bytes + size_bytes - capacity_bytes
        for victim in self._victims(excess, size_bytes, capacity_bytes, spare):
            unlink(victim)
            self._writer.execute("DELETE FROM blocks WHERE key = ?", (victim.key,))

    def _victims(
        self, excess: int, size_bytes: int, capacity_bytes: int, spare: Spare
    ) -> list[Victim]:
        if excess <= 0:
            return []
        victims = []
        for victim in self._in_turn():
            if victim.quarantined or not spare(victim.key):
                victims.append(victim)
                excess -= victim.size_bytes
            if excess <= 0:
                return victims
        raise NoSpace(
            f"a block of {size_bytes} bytes does not fit under the store's cap of {capacity_bytes}"
            " bytes beside what is in use: raise the cap"
        )

    def _in_turn(self) -> Iterator[Victim]:
        """Damaged blocks, then those that are ranked, then the others, oldest use first."""
        ranked = dict.fromkeys(self._ranking())
        query = "SELECT key, size, state FROM blocks"
        if ranked:
            damaged = self._writer.execute(f"{query} WHERE state = ?", (QUARANTINED,)).fetchall()
            yield from (Victim(key, size, quarantined=True) for key, size, _ in damaged)
            for key in ranked:
                row = self._writer.execute(
                    f"{query} WHERE key = ? AND state = ?", (key, READY)
                ).fetchone()
                if row is not None:
                    yield Victim(row[0], row[1], quarantined=False)
        for key, size, state in self._writer.execute(f"{query} ORDER BY state DESC, used, rowid"):
            if key not in ranked and not (ranked and state == QUARANTINED):
                yield Victim(key, size, state == QUARANTINED)

    def _save_uses(self) -> None:
        with self._noting:
            rows = [(used, hits, key) for key, (used, hits) in self._used.items()]
            self._used.clear()
        self._writer.executemany(
            "UPDATE blocks SET used = max(used, ?), hits = hits + ? WHERE key = ?", rows
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._writing, self._gate():
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self._writer.in_transaction:  # a full disk has rolled it back already
                    self._writer.execute("ROLLBACK")
                raise
            self._writer.execute("COMMIT")

    @contextmanager
    def _gate(self) -> Iterator[None]:
        """The only place where SQLite's errors become ours."""
        try:
            yield
        except (sqlite3.OperationalError, sqlite3.ProgrammingError) as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise NoSpace(f"{self._path}: {error}; free some space") from error
            raise StoreError(
                f"the catalogue {self._path} cannot be used ({error}): check that its folder can be"
                " written and that no other program holds it"
            ) from error
        except sqlite3.Error as error:
            raise CatalogueDamaged(
                f"the catalogue {self._path} is damaged ({error}): stop every kdn on this store and"
                " start again, then it is rebuilt from the blocks"
            ) from error


def discard_catalogue(path: Path) -> None:
    """Remove a damaged catalogue. To be called while no process uses it."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _totals(connection: sqlite3.Connection) -> Totals:
    blocks, tokens, size = connection.execute("SELECT blocks, tokens, size FROM totals").fetchone()
    (writing,) = connection.execute("SELECT coalesce(sum(size), 0) FROM writing").fetchone()
    return Totals(blocks, tokens, size + writing)
