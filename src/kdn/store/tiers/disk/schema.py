"""The catalogue's tables: how they are made, opened and checked, and how SQLite's errors become ours."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kdn.errors import NoSpace, StoreError

__all__ = [
    "QUARANTINED",
    "READY",
    "READ_BUSY_S",
    "WRITE_BUSY_S",
    "CatalogueDamaged",
    "Totals",
    "catalogue_errors",
    "connect",
    "prepare",
    "read_totals",
]

VERSION = 1
WRITE_BUSY_S = 30.0
"""How long a change waits for another process's; readers do not wait for writers."""
READ_BUSY_S = 1.0
"""How long a look waits while another process locks readers out, as it may to recover the catalogue."""
READY, QUARANTINED = 0, 1

# The triggers' 0 is READY.  `totals` counts ready blocks and their tokens, and the bytes of all.
_SCHEMA = """
CREATE TABLE families (
    id INTEGER PRIMARY KEY, fingerprint TEXT, causes TEXT, detail TEXT, salt TEXT,
    UNIQUE (fingerprint, causes, detail, salt)) STRICT;
CREATE TABLE blocks (
    key TEXT PRIMARY KEY, family INTEGER NOT NULL REFERENCES families, behind TEXT NOT NULL,
    start INTEGER NOT NULL, tokens BLOB NOT NULL, content TEXT NOT NULL, size INTEGER NOT NULL,
    state INTEGER NOT NULL, created REAL NOT NULL, used REAL NOT NULL, hits INTEGER NOT NULL
    ) STRICT;
CREATE INDEX by_age ON blocks (state DESC, used);
CREATE TABLE writing (
    id INTEGER PRIMARY KEY AUTOINCREMENT, owner TEXT NOT NULL, size INTEGER NOT NULL) STRICT;
CREATE TABLE totals (blocks INTEGER, tokens INTEGER, size INTEGER, capacity INTEGER) STRICT;
INSERT INTO totals VALUES (0, 0, 0, NULL);
CREATE TABLE changes (seq INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL) STRICT;
CREATE TRIGGER came AFTER INSERT ON blocks BEGIN
    UPDATE totals SET blocks = blocks + (NEW.state = 0), size = size + NEW.size,
        tokens = tokens + (NEW.state = 0) * length(NEW.tokens) / 4;
    INSERT INTO changes (key) VALUES (NEW.key); END;
CREATE TRIGGER went AFTER DELETE ON blocks BEGIN
    UPDATE totals SET blocks = blocks - (OLD.state = 0), size = size - OLD.size,
        tokens = tokens - (OLD.state = 0) * length(OLD.tokens) / 4;
    INSERT INTO changes (key) VALUES (OLD.key); END;
CREATE TRIGGER turned AFTER UPDATE OF state, size ON blocks BEGIN
    UPDATE totals SET blocks = blocks + (NEW.state = 0) - (OLD.state = 0),
        size = size + NEW.size - OLD.size,
        tokens = tokens + ((NEW.state = 0) - (OLD.state = 0)) * length(NEW.tokens) / 4;
    INSERT INTO changes (key) VALUES (NEW.key); END;
PRAGMA user_version = 1;
"""


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
    blocks, tokens, size = connection.execute("SELECT blocks, tokens, size FROM totals").fetchone()
    (writing,) = connection.execute("SELECT coalesce(sum(size), 0) FROM writing").fetchone()
    return Totals(blocks, tokens, size + writing)


@contextmanager
def catalogue_errors(path: Path) -> Iterator[None]:
    """The only place where SQLite's errors become ours."""
    try:
        yield
    except (sqlite3.OperationalError, sqlite3.ProgrammingError) as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise NoSpace(f"{path}: {error}; free some space") from error
        raise StoreError(
            f"the catalogue {path} cannot be used ({error}): check that its folder can be"
            " written and that no other program holds it"
        ) from error
    except sqlite3.Error as error:
        raise CatalogueDamaged(
            f"the catalogue {path} is damaged ({error}): stop every kdn on this store and"
            " start again, then it is rebuilt from the blocks"
        ) from error


def connect(path: Path, busy_s: float) -> sqlite3.Connection:
    """A connection to the database at `path`, usable from any thread (one at a time)."""
    connection = sqlite3.connect(
        path, timeout=busy_s, isolation_level=None, check_same_thread=False
    )
    # A lost commit costs nothing that the blocks do not say again, so no fsync per commit.
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def prepare(connection: sqlite3.Connection) -> None:
    """Make the tables if they are not there, and check what is: damage is to show now."""
    connection.execute("PRAGMA journal_mode = WAL")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 0:
        connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
    elif version != VERSION:
        raise sqlite3.DatabaseError(f"version {version}, this kdn reads {VERSION}")
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)
