"""The catalogue of a folder, and its changes: room is reserved, blocks are published and removed.

Triggers keep the totals and the log of changes, so that no statement can forget them.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kdn.core import BlockKey
from kdn.errors import NoSpace, StoreError
from kdn.machine.files import system_errors
from kdn.store.index.index import Entry
from kdn.store.tiers.disk.catalogue_reader import (
    CatalogueReader,
    Rows,
    Totals,
    Veil,
    catalogue_errors,
    read_totals,
)
from kdn.store.tiers.disk.schema import QUARANTINED, READY, WRITE_BUSY_S, connect, prepare
from kdn.store.tiers.tier import Spare

__all__ = ["Catalogue", "CatalogueWriter", "Victim", "discard_catalogue"]


CHANGES_LIMIT = 10_000
TICK_S = 1e-5
"""Between two uses, at least: a double tells them apart for the next centuries."""


@dataclass(frozen=True)
class Victim:
    """A block that was given up for room."""

    key: BlockKey
    size_bytes: int
    quarantined: bool


class CatalogueWriter:
    """Changes the shared catalogue, one transaction a change. Raises StoreError when it cannot be used."""

    def __init__(
        self,
        path: Path,
        owner: str,
        now: Callable[[], float],
        rows: Rows,
        on_commit: Callable[[Totals], None],
    ) -> None:
        """`on_commit` is told the totals after each change."""
        self._path = path
        self._rows = rows
        self._owner = owner
        self._now = now
        self._on_commit = on_commit
        self._lock = threading.RLock()
        self._noting = threading.Lock()
        self._used: dict[BlockKey, tuple[float, int]] = {}
        self._ranking: Callable[[], Iterable[BlockKey]] = tuple
        self._connection = connect(path, WRITE_BUSY_S)
        try:
            self._newest_s = prepare(self._connection)
        except BaseException:
            self._connection.close()
            raise

    def rank_by(self, ranking: Callable[[], Iterable[BlockKey]]) -> None:
        """Give up blocks in this order; those it leaves out follow by age."""
        self._ranking = ranking

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
            cursor = self._connection.execute(
                "INSERT INTO writing (owner, size) VALUES (?, ?)", row
            )
            assert cursor.lastrowid is not None
            return cursor.lastrowid

    def publish(
        self,
        reservation: int | None,
        entry: Entry,
        size_bytes: int,
        written_s: float | None = None,
        place: Callable[[], None] = lambda: None,
    ) -> None:
        """Have the block's file put in its place, and turn the reservation into a row.

        `written_s` None is now.

        Both in one transaction: two processes may put the same block in different codecs, and the
        row has to tell the size of the file that came last.
        """
        with self._transaction():
            place()
            wall_s = self._now_s() if written_s is None else written_s
            self._connection.execute("DELETE FROM writing WHERE id = ?", (reservation,))
            self._connection.execute(
                """INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0) ON CONFLICT (key)
                DO UPDATE SET state = excluded.state, size = excluded.size, used = excluded.used""",
                (
                    entry.key,
                    self._rows.family_id(self._connection, entry.family),
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
            self._connection.execute(
                "DELETE FROM changes WHERE seq <= (SELECT max(seq) FROM changes) - ?",
                (CHANGES_LIMIT,),
            )

    def cancel(self, reservation: int) -> None:
        """Nothing came of the reservation."""
        with self._transaction():
            self._connection.execute("DELETE FROM writing WHERE id = ?", (reservation,))

    def settle(
        self, key: BlockKey, size_of: Callable[[], int | None], unlink: Callable[[], None]
    ) -> None:
        """Have a ready block's row tell the size of its file; a file that no such row counts is unlinked.

        `size_of` says None where there is no file.
        """
        with self._transaction():
            (rows,) = self._connection.execute(
                "SELECT count(*) FROM blocks WHERE key = ? AND state = ?", (key, READY)
            ).fetchone()
            if not rows:
                unlink()
            elif (size_bytes := size_of()) is not None:
                self._connection.execute(
                    "UPDATE blocks SET size = ? WHERE key = ?", (size_bytes, key)
                )

    def remove(self, key: BlockKey, unlink: Callable[[], bool]) -> bool:
        """Take a block's row out unless `unlink` says that its file is to stay."""
        with self._transaction():
            if not unlink():
                return False
            cursor = self._connection.execute("DELETE FROM blocks WHERE key = ?", (key,))
            return cursor.rowcount > 0

    def quarantine(self, key: BlockKey, move: Callable[[], int]) -> None:
        """Take a block out of use; its file, moved aside, still counts and is the first to go.

        `move` returns the file's size: damage may have changed it.
        """
        with self._transaction():
            row = (QUARANTINED, move(), key)
            self._connection.execute("UPDATE blocks SET state = ?, size = ? WHERE key = ?", row)

    def unsaved_uses(self) -> Mapping[BlockKey, int]:
        """Uses that are only in memory, by block."""
        with self._noting:
            return {key: hits for key, (_, hits) in self._used.items()}

    def touch(self, key: BlockKey) -> None:
        """Note a use in memory. Written down with the next change, or by `save`."""
        with self._noting:
            _, hits = self._used.get(key, (0.0, 0))
            self._used[key] = (self._now_s(), hits + 1)

    def save(self) -> None:
        """Write down the uses that are only in memory."""
        if self._used:
            with self._transaction():
                self._save_uses()

    def release_dead(self, living: list[str]) -> None:
        """Give back what processes not among `living` had reserved. To be called while the store opens.

        Where this process is the only one, families without blocks go, too: any request may have named a
        new salt, and no other process can be thinking of a family by a number that is free again.
        """
        with self._transaction():
            owners = self._connection.execute("SELECT DISTINCT owner FROM writing").fetchall()
            dead = [row for row in owners if row[0] not in living]
            self._connection.executemany("DELETE FROM writing WHERE owner = ?", dead)
            if living == [self._owner]:
                self._connection.execute(
                    "DELETE FROM families WHERE id NOT IN (SELECT family FROM blocks)"
                )
                self._rows.forget_families()

    def set_capacity(
        self, capacity_bytes: int, spare: Spare, unlink: Callable[[Victim], None]
    ) -> None:
        """Remember the cap, and evict down to it, or as far as `spare` lets blocks go."""
        with self._transaction():
            self._connection.execute("UPDATE totals SET capacity = ?", (capacity_bytes,))
            self._make_room(0, capacity_bytes, spare, unlink)

    def check(self) -> None:
        """Audit the totals. Raises AssertionError saying what does not add up."""
        with self._lock, catalogue_errors(self._path):
            counted = self._connection.execute(
                """SELECT total(state = ?), total((state = ?) * length(tokens) / 4), total(size)
                FROM blocks""",
                (READY, READY),
            ).fetchone()
            recorded = self._connection.execute(
                "SELECT blocks, tokens, size FROM totals"
            ).fetchone()
            assert tuple(map(int, counted)) == recorded, f"counted {counted}, recorded {recorded}"

    def close(self) -> None:
        """Write down the uses, best effort: they only order evictions. Damage shows at the next opening."""
        try:
            with suppress(StoreError):
                self.save()
        finally:
            self._connection.close()

    def _make_room(
        self, size_bytes: int, capacity_bytes: int, spare: Spare, unlink: Callable[[Victim], None]
    ) -> None:
        excess = read_totals(self._connection).size_bytes + size_bytes - capacity_bytes
        if excess <= 0:
            return
        turn = _in_turn(self._connection, dict.fromkeys(self._ranking()))
        victims, missing = _victims(turn, excess, spare)
        if size_bytes and missing > 0:
            raise _no_space(size_bytes, capacity_bytes)
        for victim in victims:
            unlink(victim)
            self._connection.execute("DELETE FROM blocks WHERE key = ?", (victim.key,))

    def _now_s(self) -> float:
        """The wall time, but later than every use before it: a clock that was set back does not make new
        blocks look old."""
        self._newest_s = max(self._now(), self._newest_s + TICK_S)
        return self._newest_s

    def _save_uses(self) -> None:
        with self._noting:
            rows = [(used, hits, key) for key, (used, hits) in self._used.items()]
            self._used.clear()
        self._connection.executemany(
            "UPDATE blocks SET used = max(used, ?), hits = hits + ? WHERE key = ?", rows
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, catalogue_errors(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                totals = read_totals(self._connection)
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # a full disk has rolled it back already
                    self._connection.execute("ROLLBACK")
                raise
            self._on_commit(totals)


def _victims(turn: Iterable[Victim], excess: int, spare: Spare) -> tuple[list[Victim], int]:
    """Who goes so that `excess` bytes go, and how many of these bytes nobody may go for."""
    victims = []
    for victim in turn:
        if victim.quarantined or not spare(victim.key):
            victims.append(victim)
            excess -= victim.size_bytes
        if excess <= 0:
            break
    return victims, max(excess, 0)


def _no_space(size_bytes: int, capacity_bytes: int) -> NoSpace:
    if capacity_bytes < size_bytes:  # so a nearly full disk leaves it, where no cap is set
        return NoSpace(
            f"the store may hold {capacity_bytes} bytes, less than one block of {size_bytes}: free some space"
            " on its disk (without a cap of yours it takes a tenth of what is free), or set store.disk_bytes"
        )
    return NoSpace(
        f"a block of {size_bytes} bytes does not fit under the store's cap of {capacity_bytes}"
        " bytes beside what is in use: raise the cap"
    )


def _in_turn(connection: sqlite3.Connection, ranked: Mapping[BlockKey, None]) -> Iterator[Victim]:
    """Damaged blocks, then those that are ranked, then the others, oldest use first."""
    query = "SELECT key, size, state FROM blocks"
    if ranked:
        damaged = connection.execute(f"{query} WHERE state = ?", (QUARANTINED,)).fetchall()
        yield from (Victim(key, size, quarantined=True) for key, size, _ in damaged)
        for key in ranked:
            row = connection.execute(
                f"{query} WHERE key = ? AND state = ?", (key, READY)
            ).fetchone()
            if row is not None:
                yield Victim(row[0], row[1], quarantined=False)
    for key, size, state in connection.execute(f"{query} ORDER BY state DESC, used, rowid"):
        if key not in ranked and not (ranked and state == QUARANTINED):
            yield Victim(key, size, state == QUARANTINED)


class Catalogue:
    """One process's way to the shared catalogue: `reader` looks, `writer` changes.

    Raises StoreError when it cannot be used, CatalogueDamaged when it is to be discarded and rebuilt.
    """

    def __init__(
        self, path: Path, owner: str, now: Callable[[], float], veil: Veil | None = None
    ) -> None:
        """With `veil` tokens are written veiled; rows that another key veiled, or any without it, are
        passed over as if they were not there."""
        rows = Rows(veil)
        doing = f"opening the catalogue {path}"
        with system_errors(doing), catalogue_errors(path), ExitStack() as undo:
            self.writer = CatalogueWriter(path, owner, now, rows, self._committed)
            undo.callback(self.writer.close)
            self.reader = CatalogueReader(path, rows)
            undo.callback(self.reader.close)
            self.reader.refresh_totals()
            undo.pop_all()

    def close(self) -> None:
        try:
            self.writer.close()
        finally:
            self.reader.close()

    def _committed(self, totals: Totals) -> None:
        self.reader.totals = totals


def discard_catalogue(path: Path) -> None:
    """Remove a damaged catalogue. To be called while no process uses it."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
