"""The catalogue's tables: how they are made, opened and checked."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

from kdn.core import BLOCK_TOKENS
from kdn.store.block.format import MAX_BLOCK_BYTES, MAX_POSITION

__all__ = [
    "QUARANTINED",
    "READY",
    "READ_BUSY_S",
    "WRITE_BUSY_S",
    "connect",
    "prepare",
]

VERSION = 1
WAL_BYTES = 1 << 20
"""About how large the write-ahead log gets before it is written back, and is cut to afterwards."""
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


def connect(path: Path, busy_s: float) -> sqlite3.Connection:
    """A connection to the database at `path`, usable from any thread (one at a time).

    Its files are their owner's alone. Raises OSError when it is no file that can be written.
    """
    _make_file(path)
    connection = sqlite3.connect(
        path, timeout=busy_s, isolation_level=None, check_same_thread=False
    )
    # A lost commit costs nothing that the blocks do not say again, so no fsync per commit.
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def _make_file(path: Path) -> None:
    """An empty file of its owner's, unless one is there.

    A file that is there is not opened here: POSIX takes all locks of a process off a file when any
    descriptor of it is closed.  SQLite's lock says that the catalogue is in use; without it the next
    process that closes removes the write-ahead log under those that stay, and they and later ones
    then write two logs.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
    except FileExistsError:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise OSError(errno.EINVAL, "something that is not a file lies there") from None
        if not os.access(path, os.R_OK | os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from None


def prepare(connection: sqlite3.Connection) -> float:
    """Make the tables if they are not there, and check what is: damage is to show now.

    Returns the wall time of the newest use of a block, 0 without one.  Raises sqlite3.DatabaseError for
    anything that this code could not have written.
    """
    connection.execute("PRAGMA journal_mode = WAL")
    # The log beside the database stays this small, whatever the traffic.
    connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_BYTES // 8192}")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 0:
        connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
    elif version != VERSION:
        raise sqlite3.DatabaseError(f"version {version}, this kdn reads {VERSION}")
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(found)
    connection.execute("BEGIN")
    try:
        _check_tables(connection)
        return _check_rows(connection)
    finally:
        connection.execute("COMMIT")


def _check_tables(connection: sqlite3.Connection) -> None:
    with closing(sqlite3.connect(":memory:")) as fresh:
        fresh.executescript(_SCHEMA)
        if _tables(connection) != _tables(fresh):
            raise sqlite3.DatabaseError("its tables are not those of this version")


def _tables(connection: sqlite3.Connection) -> dict[str, str]:
    rows = connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite!_%' ESCAPE '!'"
    )
    return {name: " ".join(sql.split()) for name, sql in rows}


def _check_rows(connection: sqlite3.Connection) -> float:
    """SQLite has checked the types; here is what the types do not say. Returns the newest use."""
    bounds = {"position": MAX_POSITION, "tokens": 4 * BLOCK_TOKENS, "size": 2 * MAX_BLOCK_BYTES}
    wrong, newest_s, *counted = connection.execute(_SURVEY, bounds).fetchone()
    (others,) = connection.execute(_WRONG_OTHERS, bounds).fetchone()
    if wrong or others:
        raise sqlite3.DatabaseError(f"{int(wrong + others)} rows hold impossible values")
    totals = connection.execute("SELECT blocks, tokens, size FROM totals").fetchall()
    if totals != [tuple(map(int, counted))]:
        raise sqlite3.DatabaseError(f"its totals are {totals}, its blocks say {counted}")
    return float(newest_s)


# one pass over the blocks: a large store is opened by every command
_SURVEY = """
SELECT total(key IS NULL OR length(key) != 64 OR instr(key, '/') OR family NOT IN (SELECT id FROM families)
        OR start < 0 OR start > :position OR length(tokens) % 4
        OR NOT length(tokens) BETWEEN 4 AND :tokens
        OR size < 0 OR size > :size OR state NOT IN (0, 1) OR hits < 0
        OR NOT abs(created) < 1e300 OR NOT abs(used) < 1e300),
    coalesce(max(used), 0.0), total(state = 0), total((state = 0) * (length(tokens) / 4)), total(size)
FROM blocks
"""
_WRONG_OTHERS = """
SELECT (SELECT count(*) FROM families WHERE fingerprint IS NULL OR causes IS NULL OR detail IS NULL
        OR salt IS NULL)
    + (SELECT count(*) FROM writing WHERE size < 0 OR size > :size)
    + (SELECT count(*) FROM totals WHERE capacity < 0)
"""
