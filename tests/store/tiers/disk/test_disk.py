"""The disk tier: a cap that holds, and damage of every kind as a counted miss."""

from __future__ import annotations

import json
import os
import resource
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from kdn.clock import ManualClock
from kdn.core import BlockId, BlockKey
from kdn.errors import ForeignStore, NoSpace, StoreError
from kdn.store import Block, DiskTier, EncodedBlock, Store, encode_block
from kdn.store.block.format import MAX_BLOCK_BYTES
from kdn.store.tiers.seal import KeyRing
from kdn.trace import NoTrace, Recorder
from tests.store.helpers import BadReads, block_id, make_block, run_of

SIZE = 16384
"""A test block of up to 64 tokens: one page of header and three of layers."""
NUMBERS = range(12)


def encoded(number: int) -> EncodedBlock:
    return encode_block(make_block(block_id([number])))


def nobody(_: str) -> bool:
    return False


def open_tier(folder: Path, blocks: float = 100, clock: ManualClock | None = None) -> DiskTier:
    tier = DiskTier(folder, int(blocks * SIZE), clock or ManualClock(), NoTrace())
    tier.changes()
    return tier


def kept(tier: DiskTier) -> set[int]:
    names = {encoded(number).key: number for number in NUMBERS}
    return {names[key] for key in tier.block_keys()}


def file_of(folder: Path, key: BlockKey) -> Path:
    return folder / "blocks" / key[:2] / f"{key}.kdn"


def file_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.kdn"))


# --- the cap ---


def test_the_least_recently_used_goes_and_the_cap_holds(tmp_path: Path) -> None:
    clock = ManualClock()
    tier = open_tier(tmp_path / "kv", 3, clock)
    for number in (0, 1, 2):
        tier.put(encoded(number), nobody)
        clock.advance(1)
    tier.touch(encoded(0).key)
    tier.put(encoded(3), nobody)
    assert kept(tier) == {0, 2, 3}
    assert tier.usage().size_bytes == file_bytes(tmp_path / "kv") == 3 * SIZE
    assert tier.usage().evicted == 1
    tier.changes()
    tier.check()
    tier.close()


def test_what_is_pinned_is_never_evicted(tmp_path: Path) -> None:
    tier = open_tier(tmp_path / "kv", 2)
    tier.put(encoded(0), nobody)
    tier.put(encoded(1), nobody)
    tier.put(encoded(2), lambda key: key == encoded(0).key)
    assert kept(tier) == {0, 2}
    with pytest.raises(NoSpace):
        tier.put(encoded(3), lambda _: True)
    assert kept(tier) == {0, 2}
    tier.changes()
    tier.check()
    tier.close()


def test_a_block_over_the_cap_leaves_nothing_behind(tmp_path: Path) -> None:
    tier = open_tier(tmp_path / "kv", 0.5)
    with pytest.raises(NoSpace, match="less than one block of 16384: free some space"):
        tier.put(encoded(0), nobody)
    assert file_bytes(tmp_path / "kv") == 0
    assert list((tmp_path / "kv" / "writing").iterdir()) == []
    tier.check()
    tier.close()


def test_reopening_with_a_lower_cap_evicts_down_to_it(tmp_path: Path) -> None:
    clock = ManualClock()
    tier = open_tier(tmp_path / "kv", 5, clock)
    for number in range(5):
        tier.put(encoded(number), nobody)
        clock.advance(1)
    tier.close()
    smaller = open_tier(tmp_path / "kv", 2)
    assert kept(smaller) == {3, 4}
    smaller.check()
    smaller.close()


def test_who_gives_no_cap_gets_the_one_that_was_given_last(tmp_path: Path) -> None:
    server = open_tier(tmp_path / "kv", 3)
    for number in range(3):
        server.put(encoded(number), nobody)
    visitor = DiskTier(tmp_path / "kv", None, ManualClock(), NoTrace())
    assert visitor.usage().capacity_bytes == 3 * SIZE
    assert visitor.usage().blocks == 3
    visitor.close()
    server.close()


def test_a_cap_of_nothing_is_remembered_too(tmp_path: Path) -> None:
    open_tier(tmp_path / "kv", 0).close()
    visitor = DiskTier(tmp_path / "kv", None, ManualClock(), NoTrace())
    assert visitor.usage().capacity_bytes == 0
    visitor.close()


def test_the_default_cap_is_a_tenth_of_what_is_free(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path / "kv", None, ManualClock(), NoTrace())
    capacity_bytes = tier.usage().capacity_bytes
    assert capacity_bytes is not None
    assert 0 < capacity_bytes <= 20 * 10**9
    tier.close()


def test_uses_are_remembered_over_a_restart(tmp_path: Path) -> None:
    clock = ManualClock()
    tier = open_tier(tmp_path / "kv", 2, clock)
    tier.put(encoded(0), nobody)
    clock.advance(1)
    tier.put(encoded(1), nobody)
    clock.advance(1)
    tier.touch(encoded(0).key)
    tier.close()
    tier = open_tier(tmp_path / "kv", 2, clock)
    tier.put(encoded(2), nobody)
    assert kept(tier) == {0, 2}
    tier.close()


# --- a full device ---

_FULL = """
import resource, sys
from pathlib import Path
from kdn.clock import SystemClock
from kdn.errors import NoSpace
from kdn.store import DiskTier, Store
from tests.store.helpers import block_id, make_block
from kdn.core import KvShape
shape = KvShape(64, 8, 64, "float32")
tier = DiskTier(Path(sys.argv[1]), 10**9, SystemClock(), __import__("kdn.trace").trace.NoTrace())
store = Store([tier])
store.put(make_block(block_id([1])))
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
big = make_block(block_id(range(256)), shape)
try:
    store.put(big)
except NoSpace as error:
    print("NoSpace", type(error.__cause__).__name__)
store.check()
stat = store.stat()
print(stat.dropped, stat.blocks, stat.tiers["disk"].size_bytes)
store.close()
"""


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[4]
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": f"{root / 'src'}:{root}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_write_that_the_device_refuses_is_counted_and_leaves_nothing(tmp_path: Path) -> None:
    assert resource.RLIMIT_FSIZE  # the child may not write files over 1 MiB
    done = run_python(_FULL, tmp_path / "kv")
    assert done.stdout.splitlines() == ["NoSpace OSError", f"1 1 {SIZE}"], done.stderr
    assert list((tmp_path / "kv" / "writing").iterdir()) == []
    assert file_bytes(tmp_path / "kv") == SIZE


def put_all(store: Store, blocks: list[Block]) -> None:
    for block in blocks:
        store.put(block)


def families(folder: Path) -> list[str]:
    with closing(sqlite3.connect(folder / "catalogue.sqlite")) as catalogue:
        return [salt for (salt,) in catalogue.execute("SELECT salt FROM families ORDER BY salt")]


def test_salts_without_blocks_are_forgotten_at_an_opening_by_one_process_alone(
    tmp_path: Path,
) -> None:
    """The new salt gets the number that an old one had, and is told as itself."""
    tier = open_tier(tmp_path)
    for salt in "abc":
        block = encode_block(make_block(block_id([1], salt=salt)))
        tier.put(block, nobody)
        if salt != "b":
            tier.drop(block.key)
    open_tier(tmp_path).close()
    assert families(tmp_path) == ["a", "b", "c"], "the first process is there still"
    tier.close()
    tier = open_tier(tmp_path)
    assert families(tmp_path) == ["b"]
    tier.put(encode_block(make_block(block_id([1], salt="d"))), nobody)
    assert [entry.family.salt for entry in tier.changes().added] == ["d"]
    tier.close()


def test_a_full_file_system_is_survived(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        store = Store([DiskTier(small / "kv", 10**9, ManualClock(), NoTrace())])
        blocks = [make_block(block_id([number])) for number in range(200)]
        with pytest.raises(NoSpace):
            put_all(store, blocks)
        assert 10 < store.stat().blocks < 100
        assert store.stat().dropped == 1
        store.check()
        assert list((small / "kv" / "writing").iterdir()) == []
        assert store.verify().corrupt == ()
        store.close()
    finally:
        subprocess.run(["umount", str(small)], check=True)


# --- damage ---


def reopened(folder: Path, trace: Recorder) -> Store:
    return Store([DiskTier(folder, 100 * SIZE, ManualClock(), trace)], trace=trace)


def filled(folder: Path, count: int = 2) -> list[BlockId]:
    names = [block_id([number]) for number in range(count)]
    with reopened(folder, Recorder()) as store:
        for name in names:
            store.put(make_block(name))
    return names


def reads(store: Store, name: BlockId) -> bool:
    """True when the block opens and every layer is what was written."""
    reader = store.open(name)
    if reader is None:
        return False
    with reader:
        runs = [bytes(run) for run in reader.layers(0, 3)]
    return runs == [run_of(name, layer) for layer in range(3)]


def test_a_torn_file_is_a_counted_miss_and_is_computed_again(tmp_path: Path) -> None:
    first, second = filled(tmp_path / "kv")
    path = file_of(tmp_path / "kv", first.key)
    os.truncate(path, SIZE - 1)
    trace = Recorder()
    with reopened(tmp_path / "kv", trace) as store:
        assert not reads(store, first)
        assert reads(store, second)
        stat = store.stat()
        assert (stat.corrupt, stat.misses, stat.hits, stat.blocks) == (1, 1, 1, 1)
        assert trace.count("store.corrupt") == 1
        assert not path.exists()
        assert (tmp_path / "kv" / "quarantine" / path.name).exists()
        store.check()
        store.put(make_block(first))
        assert reads(store, first)
        assert not (tmp_path / "kv" / "quarantine" / path.name).exists()
        store.check()


def test_a_file_longer_than_any_block_goes_and_the_catalogue_stays(tmp_path: Path) -> None:
    (name,) = filled(tmp_path / "kv", 1)
    path = file_of(tmp_path / "kv", name.key)
    trace = Recorder()
    with reopened(tmp_path / "kv", trace) as store:
        os.truncate(path, 2 * MAX_BLOCK_BYTES + 1)  # it takes no room: nothing was written
        assert not reads(store, name)
        assert not path.exists()
        assert store.stat().corrupt == 1
        store.check()
        with reopened(tmp_path / "kv", trace) as another:
            assert another.stat().blocks == 0
    assert trace.count("store.rebuild") == 0


@pytest.mark.parametrize("is_sealed", [False, True])
def test_a_read_that_fails_or_is_short_damages_no_block(tmp_path: Path, is_sealed: bool) -> None:
    if is_sealed:
        pytest.importorskip("cryptography")
    ring, files = KeyRing(bytes(32)) if is_sealed else None, BadReads()
    disk = DiskTier(tmp_path / "kv", 10**9, ManualClock(), NoTrace(), ring=ring, files=files)
    name = block_id([1])
    with Store([disk]) as store:
        store.put(make_block(name))
        files.fails = True
        assert not reads(store, name)
        files.fails, files.short = False, True
        assert reads(store, name)
        assert (store.stat().corrupt, store.stat().blocks) == (0, 1)
        store.check()


def test_a_file_that_cannot_be_read_at_an_opening_is_kept(tmp_path: Path) -> None:
    (name,) = filled(tmp_path / "kv", 1)
    (tmp_path / "kv" / "catalogue.sqlite").unlink()
    files = BadReads()
    files.fails = True
    DiskTier(tmp_path / "kv", 10**9, ManualClock(), NoTrace(), files=files).close()
    with reopened(tmp_path / "kv", Recorder()) as store:
        assert reads(store, name)


def test_a_renamed_file_is_not_taken_for_another_block(tmp_path: Path) -> None:
    first, second = filled(tmp_path / "kv")
    source, target = (file_of(tmp_path / "kv", name.key) for name in (first, second))
    source.replace(target)
    with reopened(tmp_path / "kv", Recorder()) as store:
        assert not reads(store, first)
        assert not reads(store, second)
        assert store.stat().corrupt == 1
        store.check()


def test_a_vanished_file_is_a_miss_and_is_forgotten(tmp_path: Path) -> None:
    first, _ = filled(tmp_path / "kv")
    with reopened(tmp_path / "kv", Recorder()) as store:
        file_of(tmp_path / "kv", first.key).unlink()
        assert not reads(store, first)
        assert store.stat().blocks == 1
        store.put(make_block(first))
        assert reads(store, first)
        store.check()


def test_quarantined_files_count_and_are_the_first_to_go(tmp_path: Path) -> None:
    names = filled(tmp_path / "kv", 3)
    os.truncate(file_of(tmp_path / "kv", names[2].key), SIZE)
    with file_of(tmp_path / "kv", names[2].key).open("r+b") as file:
        file.seek(SIZE - 1)
        file.write(b"x")
    store = Store([DiskTier(tmp_path / "kv", 3 * SIZE, ManualClock(), NoTrace())])
    assert store.verify().corrupt == (names[2].key,)
    assert store.stat().tiers["disk"].size_bytes == 3 * SIZE
    assert store.stat().tiers["disk"].blocks == 2
    store.check()
    store.put(make_block(block_id([7])))
    assert list((tmp_path / "kv" / "quarantine").iterdir()) == []
    assert store.stat().evicted == 0
    store.check()
    store.close()


def test_a_file_of_absurd_size_is_refused_without_making_room_for_it(tmp_path: Path) -> None:
    first, second = filled(tmp_path / "kv")
    os.truncate(file_of(tmp_path / "kv", first.key), 1 << 40)  # sparse: takes no space
    with reopened(tmp_path / "kv", Recorder()) as store:
        assert not reads(store, first)
        assert reads(store, second)
        assert store.stat().corrupt == 1
        store.put(make_block(first))
        assert reads(store, first)
        store.check()


def test_a_lost_catalogue_is_rebuilt_from_the_blocks(tmp_path: Path) -> None:
    names = filled(tmp_path / "kv", 5)
    for path in (tmp_path / "kv").glob("catalogue.sqlite*"):
        path.unlink()
    with reopened(tmp_path / "kv", Recorder()) as store:
        assert all(reads(store, name) for name in names)
        store.check()


@pytest.mark.parametrize("damage", ["noise", "cut", "page"])
def test_a_damaged_catalogue_is_rebuilt_from_the_blocks(tmp_path: Path, damage: str) -> None:
    names = filled(tmp_path / "kv", 5)
    path = tmp_path / "kv" / "catalogue.sqlite"
    if damage == "noise":
        path.write_bytes(b"no database at all" * 500)
    elif damage == "cut":
        os.truncate(path, path.stat().st_size // 2)
    else:
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(bytes(range(256)) * 16)
    trace = Recorder()
    with reopened(tmp_path / "kv", trace) as store:
        assert all(reads(store, name) for name in names)
        assert trace.count("store.rebuild") == 1
        store.check()


def test_a_catalogue_that_lags_behind_the_files_catches_up(tmp_path: Path) -> None:
    names = filled(tmp_path / "kv", 3)
    database = sqlite3.connect(tmp_path / "kv" / "catalogue.sqlite")
    with database:
        database.execute("DELETE FROM blocks WHERE key = ?", (names[0].key,))
    database.close()
    file_of(tmp_path / "kv", names[1].key).unlink()
    with reopened(tmp_path / "kv", Recorder()) as store:
        assert [reads(store, name) for name in names] == [True, False, True]
        store.check()


def test_rebuilding_leaves_out_files_whose_header_is_damaged(tmp_path: Path) -> None:
    names = filled(tmp_path / "kv", 3)
    (tmp_path / "kv" / "catalogue.sqlite").unlink()
    with file_of(tmp_path / "kv", names[1].key).open("r+b") as file:
        file.seek(100)
        file.write(b"\xff\xff\xff")
    trace = Recorder()
    with reopened(tmp_path / "kv", trace) as store:
        assert [reads(store, name) for name in names] == [True, False, True]
        assert trace.count("store.corrupt") == 1
        store.check()


def test_a_row_with_a_garbled_name_is_put_out_of_use(tmp_path: Path) -> None:
    names = filled(tmp_path / "kv", 2)
    database = sqlite3.connect(tmp_path / "kv" / "catalogue.sqlite")
    with database:
        database.execute("UPDATE blocks SET tokens = x'63000000' WHERE key = ?", (names[0].key,))
    database.close()
    with reopened(tmp_path / "kv", Recorder()) as store:
        assert store.match(names[0].fingerprint, names[0].recipe, "", [99]).hits == ()
        assert store.stat().corrupt == 1
        assert store.match(names[1].fingerprint, names[1].recipe, "", [1]).num_tokens == 1


def test_other_peoples_files_among_the_blocks_are_left_alone(tmp_path: Path) -> None:
    filled(tmp_path / "kv", 1)
    note = tmp_path / "kv" / "blocks" / "note.txt"
    note.write_text("mine")
    (tmp_path / "kv" / "blocks" / "zz").mkdir()
    (tmp_path / "kv" / "blocks" / "zz" / "odd.kdn").write_text("mine, too")
    with reopened(tmp_path / "kv", Recorder()) as store:
        store.clear()
        assert store.stat().blocks == 0
    assert note.read_text() == "mine"


# --- whose folder ---


def test_a_folder_with_other_things_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(ForeignStore, match=r"thesis\.txt.*choose another"):
        open_tier(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("marker", "words"),
    [
        (json.dumps({"kdn_store": 2, "identity": "x"}), "format 2, this kdn reads 1"),
        ("{", "cannot be read"),
        (json.dumps({"kdn_store": 1, "identity": "x", "secret": 1}), "cannot be read"),
    ],
)
def test_a_store_of_another_format_is_not_taken(tmp_path: Path, marker: str, words: str) -> None:
    (tmp_path / "kdn-store.json").write_text(marker)
    with pytest.raises(ForeignStore, match=words):
        open_tier(tmp_path)


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="choose another"):
        open_tier(tmp_path / "file" / "kv")


def test_a_store_keeps_its_identity(tmp_path: Path) -> None:
    first = open_tier(tmp_path / "kv")
    second = open_tier(tmp_path / "kv")
    assert first._folder.identity == second._folder.identity
    second.close()
    first.close()
    assert list((tmp_path / "kv" / "owners").iterdir()) == []
