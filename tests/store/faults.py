"""A deterministic simulation of the store: random work under a seeded plan of faults, held to a dict.

Faults are those of devices (full, failing, torn), of networks (down, slow to tell, cut short), of clocks (set
forwards and backwards) and of processes (killed between two calls).  What is promised all along:

- what is read is what was put, or nothing;
- what a put acknowledged is found again, unless it was dropped or its file was damaged (where blocks have a
  time to live, a clock that is set forwards while no process runs ends it: that is what the time says);
- numbers, index, tiers and files agree whenever the faults stop.
"""

from __future__ import annotations

import errno
import os
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from kdn.core import EXACT, BlockKey
from kdn.errors import CorruptBlock, StoreError, Unreachable
from kdn.machine.files import Files
from kdn.store import CODECS, DiskTier, RemoteChanges, RemoteSettings, RemoteTier, Store
from kdn.store.block.format import Block
from kdn.store.policies import Rules, make_policy
from kdn.store.tiers.memory import MemoryTier
from kdn.store.tiers.remote.calls import RemoteCallSettings
from kdn.trace import NoTrace
from tests.store.helpers import MODEL, JumpingClock, block_id, make_block, run_of
from tests.store.twins import DictRemote

NAMES = [block_id([number] * 64) for number in range(12)]
BLOCKS: dict[BlockKey, Block] = {one.key: make_block(one) for one in NAMES}
ROOM = 40 * 16384
"""More than all of them take: what goes for room is another simulation's matter."""


@dataclass
class Faults:
    """What fails just now, by chance; `counts` tells what did."""

    rng: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    rate: float = 0.0

    def strike(self, what: str) -> bool:
        """Does it fail this time?"""
        if self.rng.random() >= self.rate:
            return False
        self.counts[what] += 1
        return True


class FaultyFiles(Files):
    """A device that is full or fails at any verb, half of a file written."""

    def __init__(self, faults: Faults) -> None:
        super().__init__()
        self._faults = faults

    def write(self, path: Path, data: memoryview, mode: int = 0o600) -> None:
        if self._faults.strike("ENOSPC while writing"):
            super().write(path, data[: data.nbytes // 2], mode)
            raise OSError(errno.ENOSPC, "No space left on device")
        self._fail("EIO while writing")
        super().write(path, data, mode)

    def read(self, descriptor: int, into: memoryview, start: int) -> int:
        self._fail("EIO while reading")
        some = into[: into.nbytes // 2] if self._faults.strike("a short read") else into
        return super().read(descriptor, some, start)

    def rename(self, path: Path, to: Path) -> None:
        self._fail("EIO while renaming")
        super().rename(path, to)

    def make_folder(self, path: Path) -> None:
        self._fail("ENOSPC for a folder", errno.ENOSPC)
        super().make_folder(path)

    def sync_folder(self, path: Path) -> None:
        self._fail("EIO while syncing")
        super().sync_folder(path)

    def remove(self, path: Path) -> None:
        self._fail("EROFS while removing", errno.EROFS)
        super().remove(path)

    def _fail(self, what: str, number: int = errno.EIO) -> None:
        if self._faults.strike(what):
            raise OSError(number, os.strerror(number))


class FaultyRemote(DictRemote):
    """A dict behind a network that is down, loses blocks, or gives a part of what was asked."""

    def __init__(self, faults: Faults) -> None:
        super().__init__()
        self._faults = faults

    def head(self, key: BlockKey, num_bytes: int) -> tuple[bytes, int] | None:
        self._fail()
        if self._faults.strike("a remote that lost a block"):
            super().remove(key)
        return super().head(key, num_bytes)

    def read(self, key: BlockKey, start: int, stop: int) -> bytes:
        self._fail()
        data = super().read(key, start, stop)
        return data[: len(data) // 2] if self._faults.strike("a remote's short read") else data

    def write(self, key: BlockKey, note: bytes, data: memoryview) -> None:
        self._fail()
        super().write(key, note, data)

    def remove(self, key: BlockKey) -> bool:
        self._fail()
        return super().remove(key)

    def changes(self) -> RemoteChanges:
        self._fail()
        return super().changes()

    def _fail(self) -> None:
        if self._faults.strike("a remote that is down"):
            raise Unreachable("the network is down")


class Simulation:
    """One store's life in `folder`: opened, worked with, hurt, killed and opened again."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.faults = Faults(self.rng)
        self.counts = self.faults.counts
        self.reads = 0
        self._folder = folder
        self._clock = JumpingClock()
        self._remote = FaultyRemote(self.faults)
        self._promised: set[BlockKey] = set()
        self._hurt: set[BlockKey] = set()
        """Of these somebody damaged the file: a put finds it there, and does not read all of it."""
        self._ttl_s = self.rng.choice([None, None, 1e4])
        self._store = self._open()

    def run(self, steps: int) -> None:
        """Work under faults, look at all of it without them, and close."""
        for _ in range(steps):
            self.faults.rate = self.rng.choice([0.0, 0.02, 0.2])
            self.rng.choice(self._acts())()
            assert self._store.flush(60)  # one thread at a time draws from the same chances
        self.faults.rate = 0.0
        self._look()
        self._store.close()
        self._store = self._open()  # files and catalogue are made to agree
        self._look()
        self._store.check()
        assert self._store.verify().corrupt == ()
        self._store.close()

    def _look(self) -> None:
        """Without faults all that is promised is there."""
        for one in NAMES:
            self._read(one.key)
        here = {entry.key for entry in self._store.index.entries()}
        lost = self._promised - here
        assert not lost, f"acknowledged and lost: {lost}"

    # --- what may happen ---

    def _acts(self) -> list[Callable[[], None]]:
        work = [
            self._put,
            self._put,
            self._write_behind,
            self._read_one,
            self._read_one,
            self._drop,
        ]
        hurt = [self._tear, self._jump, self._kill, self._squat, self._pass_time]
        return [*work, *work, *hurt]

    def _put(self) -> None:
        block = self._any()
        try:
            self._store.put(block, CODECS[self.rng.choice(["none", "lossless"])])
        except StoreError:
            return
        if self._ttl_s is None and block.id.key not in self._hurt:
            self._promised.add(block.id.key)

    def _write_behind(self) -> None:
        self._store.write_behind(self._any())

    def _read_one(self) -> None:
        self._read(self._any().id.key)

    def _drop(self) -> None:
        key = self._any().id.key
        self._promised.discard(key)
        with suppress(StoreError):
            self._store.drop(key)

    def _tear(self) -> None:
        """A block's file is cut, flipped or emptied behind the store's back."""
        found = sorted((self._folder / "blocks").rglob("*.kdn"))
        files = [path for path in found if path.is_file()]
        if not files:
            return
        path = self.rng.choice(files)
        self._promised.discard(BlockKey(path.stem))
        self._hurt.add(BlockKey(path.stem))
        how = self.rng.choice(["torn", "flipped", "emptied", "removed"])
        self.counts[f"a file {how}"] += 1
        if how == "removed":
            path.unlink()
            return
        data = bytearray(path.read_bytes())
        if data and how == "flipped":
            data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
        size = {"torn": self.rng.randrange(len(data) + 1), "emptied": 0}.get(how, len(data))
        path.write_bytes(data[:size])

    def _squat(self) -> None:
        """A pipe or a link in the place of a block that is not there."""
        path = self._folder / "blocks" / NAMES[0].key[:2] / f"{NAMES[0].key}.kdn"
        if not path.exists() and path.parent.is_dir():
            self.counts["a pipe in a block's place"] += 1
            os.mkfifo(path)

    def _jump(self) -> None:
        self.counts["a clock that jumps"] += 1
        self._clock.jump(self.rng.choice([-1e9, -3600.0, 3600.0, 1e9]))

    def _pass_time(self) -> None:
        self._clock.advance(self.rng.choice([0.5, 70.0]))

    def _kill(self) -> None:
        """The process dies: nothing is flushed, saved or closed; its lock goes with it."""
        self.counts["a process killed"] += 1
        disk = self._store.tiers.durable
        assert isinstance(disk, DiskTier)
        disk._catalogue.reader.close()
        disk._catalogue.writer._connection.close()
        assert disk._folder._owner_lock is not None
        os.close(disk._folder._owner_lock)
        for tier in self._store.tiers.far:
            tier.close()
        self._store = self._open()

    # --- inside ---

    def _any(self) -> Block:
        return BLOCKS[self.rng.choice(NAMES).key]

    def _read(self, key: BlockKey) -> None:
        """Either what was put, every layer of it, or nothing."""
        name = BLOCKS[key].id
        match = self._store.match(MODEL, EXACT, "", name.token_ids)
        assert match.num_tokens in (0, 64)
        reader = self._store.open(name)
        if reader is None:
            return
        with reader:
            for layer in self.rng.sample(range(3), 3):
                try:
                    assert bytes(reader.layer(layer)) == run_of(name, layer), "a wrong answer"
                except CorruptBlock:
                    return
        self.reads += 1

    def _open(self) -> Store:
        """Tried again while faults keep it from opening, as a person would."""
        for _ in range(50):
            try:
                return self._opened()
            except StoreError:
                self.counts["an opening that failed"] += 1
        self.faults.rate = 0.0
        return self._opened()

    def _opened(self) -> Store:
        trace, rules = NoTrace(), Rules(ttl_s=self._ttl_s)
        policy = None if self._ttl_s is None else make_policy("lru", rules)
        files = FaultyFiles(self.faults)
        disk = DiskTier(self._folder, ROOM, self._clock, trace, policy, files=files)
        calls = RemoteCallSettings(timeout_s=5.0, attempts=1, pause_s=0.0)
        settings = RemoteSettings(calls, poll_s=0)
        far = RemoteTier(self._remote, settings, self._clock, trace, random.Random(1))
        memory = MemoryTier(4 * 16384, trace, None, self._clock)
        return Store([memory, disk], far=[far], clock=self._clock, trace=trace)
