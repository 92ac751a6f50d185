"""A power cut at every step of the disk tier: nothing torn is served, nothing promised is lost."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kdn.clock import ManualClock
from kdn.core import BlockKey
from kdn.errors import CorruptBlock, ForeignStore, NoSpace
from kdn.store import CODECS, DiskTier, Store, encode_block
from kdn.trace import NoTrace
from tests.store.crashes import RecordingFiles, State, build, states
from tests.store.helpers import block_id, make_block, run_of

SIZE = 16384
"""A test block: one page of header and three of layers. Random bytes do not shrink: packed they take more."""
NAMES = [block_id([number] * 64) for number in range(8)]
BLOCKS = {name.key: name for name in NAMES}
KEYS = list(BLOCKS)


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is such a thing: thousands of stores are opened in it."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def nobody(_: str) -> bool:
    return False


def live(files: RecordingFiles, seed: int, steps: int, lives: int = 2) -> None:
    """Random puts, rewrites, drops and quarantines under a cap of three blocks; what returned is noted."""
    rng = random.Random(seed)
    clock = ManualClock()
    for number in range(lives):
        cap = (3 - number % 2) * SIZE
        tier = DiskTier(files.root, cap, clock, NoTrace(), files=files)
        for _ in range(steps):
            clock.advance(1)
            key = rng.choice(KEYS)
            act(
                tier, rng.choice(["put", "put", "put", "replace", "drop", "quarantine"]), key, files
            )
        tier.close()


def act(tier: DiskTier, verb: str, key: BlockKey, files: RecordingFiles) -> None:
    tier.changes()
    if verb == "put":
        tier.put(encode_block(make_block(BLOCKS[key])), nobody)
        files.note("ack", key)
    elif verb == "drop":
        tier.drop(key)
    elif verb == "replace":
        key = next(tier.block_keys(), key)
        with suppress(NoSpace):
            tier.replace(encode_block(make_block(BLOCKS[key]), CODECS["lossless"]), nobody)
            files.note("ack", key)
    elif tier.holds(key):
        tier.quarantine(key)
        files.note("gone", key)


def examine(folder: Path, state: State) -> None:
    """Open what the cut left, as the next processes would.

    Removals are not synced, so evicted blocks may be back, whole: there must be room for them, or
    eviction would rightly take its pick among them and the promised ones.
    """
    with Store([DiskTier(folder, 2 * len(KEYS) * SIZE, ManualClock(), NoTrace())]) as store:
        store.check()
        served = {key for key in KEYS if is_served(store, key)}
        lost = state.promised - served
        assert not lost, f"cut after step {state.steps}: acknowledged and lost: {lost}"
        store.check()
        assert list((folder / "writing").iterdir()) == []
    with Store([DiskTier(folder, 2 * SIZE, ManualClock(), NoTrace())]) as store:
        store.check()
        assert store.stat().tiers["disk"].size_bytes <= 2 * SIZE


def is_served(store: Store, key: BlockKey) -> bool:
    """Asserts that what comes is what was put."""
    reader = store.open(BLOCKS[key])
    if reader is None:
        return False
    with reader:
        try:
            layers = [bytes(run) for run in reader.layers(0, 3)]
        except CorruptBlock:
            return False
    assert layers == [run_of(BLOCKS[key], layer) for layer in range(3)], "torn bytes were served"
    return True


def survive_all(work: Path, *, seed: int, steps: int, most: int) -> tuple[int, int]:
    """Cut after every step of one random history; how many steps and states there were."""
    root = work / "store"
    root.mkdir()
    files = RecordingFiles(root)
    live(files, seed, steps)
    return len(files.steps), examine_all(work, files, most, seed)


def examine_all(work: Path, files: RecordingFiles, most: int, seed: int = 0) -> int:
    """Build and open what each cut may leave; how many states there were."""
    count = 0
    for state in states(files, most, seed):
        left = work / "left"
        left.mkdir()
        build(files, state, left)
        examine(left, state)
        shutil.rmtree(left)
        count += 1
    return count


@pytest.mark.parametrize("seed", range(3))
def test_no_cut_tears_or_loses_anything(work: Path, seed: int) -> None:
    steps, count = survive_all(work, seed=seed, steps=8, most=6)
    assert count > 3 * steps


def test_the_recorder_would_see_a_publish_without_its_sync(work: Path) -> None:
    """The instrument itself: a store that forgets to sync a folder is caught."""

    class Forgetful(RecordingFiles):
        def sync_folder(self, path: Path) -> None:
            if path.parent.name != "blocks":
                super().sync_folder(path)

    root = work / "store"
    root.mkdir()
    files = Forgetful(root)
    live(files, seed=0, steps=3, lives=1)
    with pytest.raises(AssertionError, match="acknowledged and lost"):
        examine_all(work, files, most=8)


def test_the_recorder_would_see_a_file_without_its_sync(work: Path) -> None:
    """A file that is not synced may be torn: then it must not be served, and was not promised."""

    class Hasty(RecordingFiles):
        def write(self, path: Path, data: memoryview, mode: int = 0o600) -> None:
            super().write(path, data, mode)
            self.steps.pop()
            self.moments.pop()

    root = work / "store"
    root.mkdir()
    files = Hasty(root)
    live(files, seed=0, steps=3, lives=1)
    with pytest.raises((AssertionError, ForeignStore), match=r"and lost|store's marker"):
        examine_all(work, files, most=40)
