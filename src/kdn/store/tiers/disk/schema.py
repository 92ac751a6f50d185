"""The catalogue's tables: how they are made, opened and looked over."""

from __future__ import annotations

import sqlite3
from pathlib import Path

__all__ = ["QUARANTINED", "READY", "connect", "prepare"]

VERSION = 1
BUSY_S = 30.0
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


def connect(path: Path) -> sqlite3.Connection:
    """A way to the database at `path`, usable from any thread (one at a time)."""
    connection = sqlite3.connect(
        path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
    )
    # A lost commit costs nothing that the blocks do not say again, so no fsync per commit.
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def prepare(connection: sqlite3.Connection) -> None:
    """Make the tables if they are not there, and look over what is: damage is to show now."""
    connection.execute("PRAGMA journal_mode = WAL")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 0:
        connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
    elif version != VERSION:
        raise sqlite3.DatabaseError(f"version {version}, this kdn reads {VERSION}")
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)
