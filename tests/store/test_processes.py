"""Two real processes on one folder, and processes that die at the worst moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kdn.clock import SystemClock
from kdn.core import EXACT
from kdn.store import DiskTier, Store, open_store
from kdn.trace import NoTrace
from tests.store.helpers import MODEL, block_id, make_block, run_of

SIZE = 16384
ROOT = Path(__file__).parents[2]

_HEAD = """
import os, signal, sys
from pathlib import Path
from kdn.clock import SystemClock
from kdn.store import open_store, DiskTier, Store, encode_block
from kdn.machine.files import Files
from kdn.trace import NoTrace
from tests.store.helpers import block_id, make_block, run_of
folder = Path(sys.argv[1])
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", _HEAD + code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def disk_only(folder: Path, blocks: int) -> Store:
    return Store([DiskTier(folder, blocks * SIZE, SystemClock(), NoTrace())])


_CONVERSE = """
store = open_store(folder, disk_bytes=10**9)
print("ready", flush=True)
for line in sys.stdin:
    verb, number = line.split()
    name = block_id([int(number)])
    if verb == "put":
        store.put(make_block(name))
        print("done", flush=True)
    elif verb == "drop":
        print(store.drop(name.key), flush=True)
    else:
        reader = store.open(name)
        print(reader is not None and bytes(reader.layer(2)) == run_of(name, 2), flush=True)
        if reader is not None:
            reader.close()
store.close()
"""


def test_what_one_process_does_the_other_sees(tmp_path: Path) -> None:
    mine = disk_only(tmp_path / "kv", 1000)
    with start(_CONVERSE, tmp_path / "kv") as other:
        assert other.stdin is not None
        assert other.stdout is not None

        def ask(line: str) -> str:
            assert other.stdin is not None
            assert other.stdout is not None
            other.stdin.write(line + "\n")
            other.stdin.flush()
            return other.stdout.readline().strip()

        assert other.stdout.readline() == "ready\n"
        assert ask("put 1") == "done"
        match = mine.match(MODEL, EXACT, "", [1])
        assert [hit.tier for hit in match.hits] == ["disk"]
        mine.put(make_block(block_id([2])))
        assert ask("read 2") == "True"
        # A block that is dropped while it is being read can be read to its end.
        reader = mine.open(match.hits[0])
        assert reader is not None
        with reader:
            assert ask("drop 1") == "True"
            assert bytes(reader.layer(0)) == run_of(block_id([1]), 0)
        assert mine.open(match.hits[0]) is None
        assert mine.match(MODEL, EXACT, "", [1]).hits == ()
        assert mine.drop(block_id([2]).key)
        assert ask("read 2") == "False"
        other.stdin.close()
        assert other.wait(60) == 0
    mine.check()
    mine.close()


def test_a_process_that_leaves_does_not_take_the_log_from_those_that_stay(tmp_path: Path) -> None:
    """SQLite removes the write-ahead log with the last user, told by a lock that a close can lose."""
    mine = disk_only(tmp_path / "kv", 1000)
    visitor = "DiskTier(folder, None, SystemClock(), NoTrace()).close()"
    with start(visitor, tmp_path / "kv") as other:
        assert other.wait(60) == 0
    assert (tmp_path / "kv" / "catalogue.sqlite-wal").exists()
    mine.put(make_block(block_id([1])))
    with disk_only(tmp_path / "kv", 1000) as theirs:
        assert theirs.match(MODEL, EXACT, "", [1]).hits
        mine.put(make_block(block_id([2])))
        assert theirs.match(MODEL, EXACT, "", [2]).hits
    mine.check()
    mine.close()


_CROWD = """
seed = int(sys.argv[2])
tier = DiskTier(folder, 20 * 16384, SystemClock(), NoTrace())
store = Store([tier])
for step in range(60):
    name = block_id([(step * 7 + seed * 3) % 50])
    store.put(make_block(name))
    with tier._catalogue.writer._transaction():  # nobody evicts or begins to write meanwhile
        files = list(tier._folder.files())  # those being written last: none is seen twice
    assert len(files) <= int(sys.argv[3]), len(files)
    reader = store.open(block_id([(step * 11 + seed) % 50]))
    if reader is not None:
        with reader:
            for layer in range(3):
                assert bytes(reader.layer(layer)) == run_of(reader.id, layer)
stat = store.stat()
assert stat.corrupt == stat.failed == 0, stat
store.close()
print("fine")
"""


def crowd_ends(folder: Path, most_files: int) -> list[str]:
    crowd = [start(_CROWD, folder, seed, most_files) for seed in range(3)]
    return [process.communicate(timeout=120)[0] for process in crowd]


def test_processes_together_read_what_was_written(tmp_path: Path) -> None:
    assert crowd_ends(tmp_path / "kv", 1000) == ["fine\n"] * 3
    with disk_only(tmp_path / "kv", 20) as store:
        assert 0 < store.stat().blocks <= 20
        assert store.verify().corrupt == ()


def test_the_cap_holds_for_processes_together(tmp_path: Path) -> None:
    assert crowd_ends(tmp_path / "kv", 20) == ["fine\n"] * 3


_DIE = {
    "with room reserved": """
tier._catalogue.writer.reserve(block.size_bytes, 10**9, lambda _: False, lambda _: None)
""",
    "half-way through the file": """
number = tier._catalogue.writer.reserve(block.size_bytes, 10**9, lambda _: False, lambda _: None)
tier._folder.temporary(number).write_bytes(block.data[:7000])
""",
    "before the file has its name": """
number = tier._catalogue.writer.reserve(block.size_bytes, 10**9, lambda _: False, lambda _: None)
Files().write_temporary(tier._folder.temporary(number), block.data)
""",
    "before the catalogue knows": """
number = tier._catalogue.writer.reserve(block.size_bytes, 10**9, lambda _: False, lambda _: None)
Files().write_temporary(tier._folder.temporary(number), block.data)
Files().publish(tier._folder.temporary(number), tier._folder.block(block.key))
""",
    "inside a transaction": """
tier._catalogue.writer._connection.execute("BEGIN IMMEDIATE")
tier._catalogue.writer._connection.execute("DELETE FROM blocks")
""",
}


@pytest.mark.parametrize("moment", _DIE)
def test_a_process_killed_at_any_moment_leaves_a_sound_store(tmp_path: Path, moment: str) -> None:
    code = f"""
store = Store([DiskTier(folder, 10**9, SystemClock(), NoTrace())])
store.put(make_block(block_id([1])))
(tier,) = store.tiers
block = encode_block(make_block(block_id([2])))
{_DIE[moment]}
os.kill(os.getpid(), signal.SIGKILL)
"""
    process = start(code, tmp_path / "kv")
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    with disk_only(tmp_path / "kv", 1000) as store:
        known = {number for number in (1, 2) if store.match(MODEL, EXACT, "", [number]).hits}
        assert known == ({1, 2} if moment == "before the catalogue knows" else {1})
        assert store.verify().corrupt == ()
        assert list((tmp_path / "kv" / "writing").iterdir()) == []
        store.check()
        store.put(make_block(block_id([2])))
        store.check()


_WRITE_ON = """
store = open_store(folder, disk_bytes=10**9)
print("ready", flush=True)
for number in range(100_000):
    store.write_behind(make_block(block_id([number])))
"""


def test_a_writer_killed_in_full_swing_leaves_a_sound_store(tmp_path: Path) -> None:
    for round_ in range(3):
        process = start(_WRITE_ON, tmp_path / "kv")
        assert process.stdout is not None
        process.stdout.readline()
        while len(list((tmp_path / "kv" / "blocks").rglob("*.kdn"))) <= 5 * round_:
            assert process.poll() is None
        process.kill()
        process.communicate(timeout=120)
        with open_store(tmp_path / "kv", disk_bytes=10**9) as store:
            assert store.verify().corrupt == ()
            assert store.stat().blocks > 5 * round_
            store.check()


def test_a_living_process_keeps_what_it_is_writing(tmp_path: Path) -> None:
    code = """
tier = DiskTier(folder, 10**9, SystemClock(), NoTrace())
number = tier._catalogue.writer.reserve(16384, 10**9, lambda _: False, lambda _: None)
tier._folder.temporary(number).write_bytes(bytes(100))
print("ready", flush=True)
sys.stdin.read()
"""
    with start(code, tmp_path / "kv") as other:
        assert other.stdout is not None
        assert other.stdin is not None
        other.stdout.readline()
        with disk_only(tmp_path / "kv", 1000) as store:
            assert store.stat().tiers["disk"].size_bytes == SIZE
        assert len(list((tmp_path / "kv" / "writing").iterdir())) == 1
        other.stdin.close()
        other.wait(60)
    with disk_only(tmp_path / "kv", 1000) as store:
        assert store.stat().tiers["disk"].size_bytes == 0
    assert list((tmp_path / "kv" / "writing").iterdir()) == []
