"""A store's folder in states that no kdn leaves: odd things among the blocks, a catalogue of any contents,
clocks that jump, another process that holds the database."""

from __future__ import annotations

import os
import socket
import sqlite3
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdn.core import EXACT, BlockId, BlockKey
from kdn.errors import StoreError
from kdn.store import DiskTier, Rules, Store, open_store
from kdn.store.block.format import encode_block
from kdn.trace import NoTrace, Recorder
from tests.store.helpers import MODEL, JumpingClock, block_id, make_block

PROMPT = tuple(range(256))
FIRST = block_id(PROMPT)
SECOND = block_id([7] * 20)
SIZE = encode_block(make_block(FIRST)).size_bytes


def filled(folder: Path) -> None:
    with open_store(folder, disk_bytes=10**7) as store:
        store.put(make_block(FIRST))
        store.put(make_block(SECOND))


def found(store: Store, name: BlockId = FIRST) -> int:
    return store.match(MODEL, EXACT, "", name.token_ids).num_tokens


def change(folder: Path, *statements: str) -> None:
    connection = sqlite3.connect(folder / "catalogue.sqlite", isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


# --- what lies in a block's place ---


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _folder(path: Path) -> None:
    (path / "inside").mkdir(parents=True)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(path.parent)  # the path of a socket may have 107 bytes
        one.bind(path.name)
        os.chdir(here)


def _device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero: it never ends
    except OSError:
        pytest.skip("devices can be made by root only")


ODD = [_pipe, _link, _loop, _folder, _socket, _device]


@pytest.mark.parametrize("make", ODD)
@pytest.mark.parametrize("when", ["open", "closed"])
def test_what_is_no_file_is_a_miss_and_never_a_hang(
    tmp_path: Path, make: Callable[[Path], None], when: str
) -> None:
    folder = tmp_path / "kv"
    filled(folder)
    path = folder / "blocks" / FIRST.key[:2] / f"{FIRST.key}.kdn"
    if when == "closed":
        path.unlink()
        make(path)
    with open_store(folder) as store:
        if when == "open":
            assert found(store) == 256
            path.unlink()
            make(path)
            assert store.open(FIRST) is None
            assert store.stat().misses == 1
        assert found(store) == 0, "it is forgotten"
        assert found(store, SECOND) == 20
        store.check()
        if make is not _folder:
            store.put(make_block(FIRST))
            assert found(store) == 256
            assert path.is_file()
            assert not path.is_symlink()
            store.check()
    assert Path("/etc/passwd").exists()


def test_folders_and_files_are_their_owners_alone(tmp_path: Path) -> None:
    filled(tmp_path / "kv")
    with open_store(tmp_path / "kv") as store:
        store.tenancy.persistent_pins.pin([FIRST.key], None)
        store.put(make_block(block_id([1, 2, 3])))
        modes = {
            path.relative_to(tmp_path): stat.S_IMODE(path.stat().st_mode)
            for path in [tmp_path / "kv", *(tmp_path / "kv").rglob("*")]
        }
    open_ones = {path: oct(mode) for path, mode in modes.items() if mode & 0o077}
    assert not open_ones
    assert len(modes) > 15


def test_the_folder_of_an_older_kdn_is_closed_to_others(tmp_path: Path) -> None:
    filled(tmp_path / "kv")
    (tmp_path / "kv").chmod(0o755)
    open_store(tmp_path / "kv").close()
    assert stat.S_IMODE((tmp_path / "kv").stat().st_mode) == 0o700


# --- the catalogue ---

BROKEN = {
    "no totals row": ["DELETE FROM totals"],
    "two totals rows": ["INSERT INTO totals VALUES (0, 0, 0, NULL)"],
    "NULL totals": ["UPDATE totals SET blocks = NULL"],
    "wrong totals": ["UPDATE totals SET size = size + 1"],
    "a negative cap": ["UPDATE totals SET capacity = -5"],
    "a negative size": ["UPDATE blocks SET size = -1"],
    "an absurd size": ["UPDATE blocks SET size = 1 << 60"],
    "a negative start": ["UPDATE blocks SET start = -3"],
    "no tokens": ["UPDATE blocks SET tokens = x''"],
    "half a token": ["UPDATE blocks SET tokens = x'0102'"],
    "a state that is none": ["UPDATE blocks SET state = 7"],
    "a key that is none": ["UPDATE blocks SET key = '../../../etc/passwd' WHERE start = 0 AND size > 20000"],
    "a family that is none": ["PRAGMA foreign_keys = off", "UPDATE blocks SET family = 99"],
    "a family of NULLs": ["UPDATE families SET salt = NULL"],
    "a family of unknown causes": ["UPDATE families SET causes = 'witchcraft'"],
    "a missing table": ["DROP TABLE writing"],
    "a missing trigger": ["DROP TRIGGER came"],
    "a missing index": ["DROP INDEX by_age"],
    "a table that is a view": ["DROP TABLE changes", "CREATE VIEW changes AS SELECT 1 AS seq, 'x' AS key"],
    "wrong types": [
        "DROP TABLE totals",
        "CREATE TABLE totals (blocks, tokens, size, capacity)",
        "INSERT INTO totals VALUES ('many', x'00', 1.5, 'all')",
    ],
    "a column more": ["ALTER TABLE blocks ADD COLUMN colour TEXT"],
    "a column less": ["ALTER TABLE blocks DROP COLUMN hits"],
    "a trigger more": ["CREATE TRIGGER mine AFTER INSERT ON blocks BEGIN DELETE FROM blocks; END"],
    "an older schema": ["PRAGMA user_version = 0"],
    "a newer schema": ["PRAGMA user_version = 2"],
    "nothing at all": [
        "DROP TABLE blocks", "DROP TABLE families", "DROP TABLE totals", "DROP TABLE writing",
        "DROP TABLE changes", "PRAGMA user_version = 0",
    ],
    "infinite times": ["UPDATE blocks SET used = 9e999, created = -9e999"],
}  # fmt: skip


@pytest.mark.parametrize("state", BROKEN)
def test_a_catalogue_that_cannot_be_used_is_rebuilt_from_the_blocks(
    tmp_path: Path, state: str
) -> None:
    filled(tmp_path / "kv")
    change(tmp_path / "kv", *BROKEN[state])
    with open_store(tmp_path / "kv", disk_bytes=10**7) as store:
        assert (found(store), found(store, SECOND)) == (256, 20)
        store.put(make_block(block_id([1, 2, 3])))
        store.check()
        assert store.verify().blocks == 3


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 4096, b"SQLite format 3\0", b"SQLite format 3\0" * 300]
)
@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
def test_files_beside_and_instead_of_the_catalogue(
    tmp_path: Path, data: bytes, suffix: str
) -> None:
    filled(tmp_path / "kv")
    (tmp_path / "kv" / f"catalogue.sqlite{suffix}").write_bytes(data)
    with open_store(tmp_path / "kv") as store:
        assert (found(store), found(store, SECOND)) == (256, 20)
        store.check()


@pytest.mark.parametrize("make", [_pipe, _folder, _loop])
def test_a_catalogue_that_is_no_file_is_one_sentence(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    filled(tmp_path / "kv")
    (tmp_path / "kv/catalogue.sqlite").unlink()
    make(tmp_path / "kv/catalogue.sqlite")
    with pytest.raises(StoreError, match=r"catalogue\.sqlite"):
        open_store(tmp_path / "kv")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(
        st.tuples(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=40)), max_size=4
    )
)
def test_bytes_of_the_catalogue_may_be_anything(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, bytes]]
) -> None:
    """Either it shows at opening and is rebuilt, or it is not seen and harms nothing."""
    folder = tmp_path_factory.mktemp("any") / "kv"
    filled(folder)
    path = folder / "catalogue.sqlite"
    data = bytearray(path.read_bytes())
    for at, new in changes:
        data[at % len(data) : at % len(data) + len(new)] = new
    path.write_bytes(data)
    with open_store(folder, disk_bytes=10**7) as store:
        for name in (FIRST, SECOND):
            assert found(store, name) in (0, name.num_tokens)
            reader = store.open(name)
            if reader is not None:
                with reader:
                    assert list(map(bytes, reader.layers(0, 3))) == list(make_block(name).layers)


def test_the_log_beside_the_catalogue_stays_small(tmp_path: Path) -> None:
    """A thousand uses and two hundred blocks under a cap of twenty: their log is two megabytes at most."""
    block = make_block(block_id([5] * 256))
    cap = 20 * encode_block(block).size_bytes
    largest = 0
    with open_store(tmp_path / "kv", disk_bytes=cap) as store:
        for number in range(200):
            store.put(make_block(block_id([number] * 256)))
            largest = max(largest, (tmp_path / "kv/catalogue.sqlite-wal").stat().st_size)
        store.check()
    assert largest < 2 << 20


# --- waiting ---


@pytest.mark.alone
def test_numbers_do_not_wait_for_a_process_that_holds_the_catalogue(tmp_path: Path) -> None:
    filled(tmp_path / "kv")
    with open_store(tmp_path / "kv") as store:
        assert found(store) == 256
        other = sqlite3.connect(tmp_path / "kv/catalogue.sqlite", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        other.execute("DELETE FROM blocks")
        store.write_behind(make_block(block_id([1, 2, 3])))  # waits for the catalogue, behind
        began_s = time.monotonic()
        for _ in range(20):
            stat_now = store.stat()
            assert stat_now.tiers["disk"].blocks == 2
            assert (stat_now.blocks, found(store), found(store, SECOND)) == (3, 256, 20)
            store.tiers.lives()
        assert time.monotonic() - began_s < 10, "the lock is held for ever"
        other.execute("ROLLBACK")
        other.close()
        assert store.flush(60)
        assert store.stat().tiers["disk"].blocks == 3


# --- clocks ---


def test_a_clock_that_is_set_back_does_not_make_new_blocks_look_old(tmp_path: Path) -> None:
    """Room for three. The clock goes back by a year: still the least recently used goes."""
    clock = JumpingClock()
    tier = DiskTier(tmp_path / "kv", 3 * SIZE, clock, NoTrace())
    blocks = [encode_block(make_block(block_id([number] * 256))) for number in range(6)]

    def here() -> list[int]:
        tier.changes()
        return [number for number, block in enumerate(blocks) if tier.holds(block.key)]

    def no_one(_: BlockKey) -> bool:
        return False

    for block in blocks[:3]:
        tier.put(block, no_one)
    clock.jump(-3e7)
    tier.touch(blocks[0].key)
    tier.put(blocks[3], no_one)
    assert here() == [0, 2, 3]
    tier.close()
    tier = DiskTier(tmp_path / "kv", 3 * SIZE, clock, NoTrace())
    tier.put(blocks[4], no_one)
    assert here() == [0, 3, 4]
    tier.put(blocks[5], no_one)
    assert here() == [3, 4, 5]
    tier.close()


@pytest.mark.parametrize("jump_s", [-1e8, -100.0, 100.0, 1e8])
def test_time_to_live_runs_by_a_clock_that_does_not_jump(tmp_path: Path, jump_s: float) -> None:
    """Ten seconds to live: the wall clock jumps, and the block goes after ten seconds all the same."""
    clock = JumpingClock()
    rules = Rules(ttl_s=10.0)
    with open_store(tmp_path / "kv", clock=clock, rules=rules, trace=Recorder()) as store:
        store.put(make_block(FIRST))
        clock.advance(4.0)
        clock.jump(jump_s)
        assert found(store) == 256
        clock.advance(5.9)
        assert found(store) == 256
        clock.advance(0.2)
        assert found(store) == 0
        store.check()
