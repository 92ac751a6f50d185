"""A store on a disk that takes no writes: it is read as any other, and nothing in it changes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdn.clock import ManualClock
from kdn.errors import NoSpace
from kdn.machine.files import Files
from kdn.store import Block, DiskTier, MemoryTier, Store
from kdn.trace import NoTrace, Recorder
from tests.cli.program import environment
from tests.store.helpers import block_id, make_block

BLOCKS = [make_block(block_id([number])) for number in range(4)]
PROTECT = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"'


class ProtectedFiles(Files):
    """Those of a disk that is mounted read-only."""

    def takes_writes(self, folder: Path) -> bool:
        return False

    def write(self, path: Path, data: memoryview, mode: int = 0o600) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def rename(self, path: Path, to: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def remove(self, path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def make_folder(self, path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store of three blocks."""
    with Store([DiskTier(tmp_path / "kv", 10**9, ManualClock(), NoTrace())]) as store:
        for block in BLOCKS[:3]:
            store.put(block)
    return tmp_path / "kv"


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def is_read(store: Store, block: Block) -> bool:
    reader = store.open(block.id)
    if reader is None:
        return False
    with reader:
        reader.layers(0, reader.shape.num_layers)
    return True


@pytest.mark.parametrize("has_catalogue", [True, False])
def test_hits_are_read_and_what_would_change_the_folder_is_a_counted_refusal(
    folder: Path, has_catalogue: bool
) -> None:
    if not has_catalogue:
        (folder / "catalogue.sqlite").unlink()
    before, trace, clock = contents(folder), Recorder(), ManualClock()
    disk = DiskTier(folder, 1, clock, trace, files=ProtectedFiles())  # a cap evicts nothing here
    with Store([MemoryTier(10**9, trace), disk], clock=clock, trace=trace) as store:
        assert store.stat().tiers["disk"].blocks == 3
        assert [is_read(store, block) for block in BLOCKS] == [True, True, True, False]
        with pytest.raises(NoSpace, match="read-only: its blocks are read, none is written"):
            store.put(BLOCKS[3])
        store.write_behind(BLOCKS[3])
        store.flush()
        assert is_read(store, BLOCKS[3]), "memory has it"
        with pytest.raises(NoSpace, match="read-only"):
            store.drop(BLOCKS[0].id.key)
        stat = store.stat()
        assert (stat.hits, stat.misses, stat.puts, stat.dropped, stat.failed) == (4, 1, 0, 2, 0)
        store.verify()
    assert contents(folder) == before
    assert len(trace.events("store.read_only")) == 1


def test_damage_is_a_miss_and_stays_where_it_is(folder: Path) -> None:
    key = BLOCKS[1].id.key
    file = folder / "blocks" / key[:2] / f"{key}.kdn"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    before = contents(folder)
    for _ in range(2):  # nothing of the first opening is there for the second
        disk = DiskTier(folder, None, ManualClock(), NoTrace(), files=ProtectedFiles())
        with Store([disk]) as store:
            assert store.verify().corrupt == (key,)
            assert [is_read(store, block) for block in BLOCKS[:3]] == [True, False, True]
    assert contents(folder) == before


def _can_mount() -> bool:
    try:
        subprocess.run(["unshare", "-rm", "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


@pytest.mark.skipif(not _can_mount(), reason="needs Linux with namespaces for users")
def test_the_commands_read_a_disk_that_is_mounted_read_only(folder: Path, tmp_path: Path) -> None:
    def kdn(*arguments: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "kdn", "store", *arguments]
        return subprocess.run(
            ["unshare", "-rm", "sh", "-c", PROTECT, "sh", str(folder), *program],
            check=False,
            capture_output=True,
            text=True,
            env=environment(tmp_path / "home") | {"KDN_STORE_FOLDER": str(folder)},
        )

    stat = kdn("stat", "--json")
    assert (stat.returncode, json.loads(stat.stdout)["tiers"]["disk"]["blocks"]) == (0, 3)
    assert stat.stderr.count("read-only") == 1
    cleared = kdn("clear", "--yes")
    assert cleared.returncode == 1
    assert "read-only: its blocks are read, none is written" in cleared.stderr
    assert "Traceback" not in cleared.stderr
