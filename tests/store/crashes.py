"""Every state in which a power cut may leave a folder, from a log of what was done to it.

What is legal is what POSIX leaves open, not what one file system happens to do.  A file's bytes are
certain once it was synced; before, it may be empty, cut off, zeros or whole.  A name that was made,
moved or removed is certain once its folder was synced; before, each such change may or may not have
happened, whatever became of the others.  SQLite's files may be those of any earlier moment, without
their log or with part of it, or be gone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from kdn.machine.files import Files

DATABASE = "catalogue.sqlite"
_NAMING = {"create", "rename", "link", "unlink", "mkdir"}


@dataclass(frozen=True)
class Step:
    """One change, or a note (`ack`, `gone`) of what is promised from here on."""

    kind: str
    path: Path
    to: Path | None = None
    inode: int = 0
    data: bytes = b""


Snapshot = tuple[bytes | None, bytes | None]
"""The database and its log, None where there is none."""


@dataclass
class RecordingFiles(Files):
    """Does everything, and writes it down."""

    root: Path
    steps: list[Step] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    moments: list[int] = field(default_factory=list)
    """For each step, which snapshot was the newest."""
    _inodes: dict[Path, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def note(self, kind: str, key: str) -> None:
        self._log(Step(kind, Path(key)))

    def write(self, path: Path, data: memoryview, mode: int = 0o600) -> None:
        super().write(path, data, mode)
        self._inodes[path] = inode = len(self.steps) + 1
        self._log(Step("create", path, inode=inode))
        self._log(Step("data", path, inode=inode, data=bytes(data)))
        self._log(Step("sync", path, inode=inode))

    def rename(self, path: Path, to: Path) -> None:
        super().rename(path, to)
        self._inodes[to] = self._inodes.pop(path, 0)
        self._log(Step("rename", path, to, self._inodes[to]))

    def link(self, path: Path, to: Path) -> None:
        super().link(path, to)
        self._inodes[to] = self._inodes[path]
        self._log(Step("link", path, to, self._inodes[to]))

    def remove(self, path: Path) -> None:
        there = path.exists()
        super().remove(path)
        if there:
            self._log(Step("unlink", path))

    def make_folder(self, path: Path) -> None:
        there = path.exists()
        super().make_folder(path)
        if not there:
            self._log(Step("mkdir", path))

    def sync_folder(self, path: Path) -> None:
        super().sync_folder(path)
        self._log(Step("syncdir", path))

    def _log(self, step: Step) -> None:
        found = (_read(self.root / DATABASE), _read(self.root / f"{DATABASE}-wal"))
        if not self.snapshots or self.snapshots[-1] != found:
            self.snapshots.append(found)
        self.steps.append(step)
        self.moments.append(len(self.snapshots) - 1)


@dataclass(frozen=True)
class State:
    """What a power cut after `steps` steps may leave, and what was promised by then."""

    steps: int
    happened: tuple[int, ...]
    """The naming steps that lasted."""
    torn: dict[int, bytes]
    """What is in files that were not synced, by inode."""
    database: Snapshot
    promised: frozenset[str]
    """Keys that were acknowledged, and of which nothing was begun to be removed."""


def states(log: RecordingFiles, most: int, seed: int = 0) -> Iterator[State]:
    """For a cut after each step: all legal states, or `most` of them drawn at random."""
    rng = random.Random(seed)
    for stop in range(1, len(log.steps) + 1):
        steps = log.steps[:stop]
        sure = [n for n, step in enumerate(steps) if _naming_is_sure(step, steps[n:])]
        open_names = [n for n, s in enumerate(steps) if s.kind in _NAMING and n not in sure]
        unsynced = _unsynced(steps)
        promised = _promised(steps)
        databases = _databases(log, stop - 1, rng)
        everything = _combinations(open_names, unsynced, databases, most, rng)
        for subset, torn, database in everything:
            happened = tuple(sorted((*sure, *subset)))
            yield State(stop, happened, torn, database, promised)


def build(log: RecordingFiles, state: State, target: Path) -> None:
    """Make the folder `target` look like `state`."""
    names: dict[Path, int | None] = {log.root: None}
    contents = {s.inode: s.data for s in log.steps[: state.steps] if s.kind == "data"}
    contents |= state.torn
    for number in state.happened:
        _apply(log.steps[number], names)
    for path in sorted(names):
        inode, place = names[path], target / path.relative_to(log.root)
        if not _reachable(path, names, log.root):
            continue
        if inode is None:
            place.mkdir(exist_ok=True)
        else:
            place.write_bytes(contents.get(inode, b""))
    for data, name in zip(state.database, (DATABASE, f"{DATABASE}-wal"), strict=True):
        if data is not None and target.exists():
            (target / name).write_bytes(data)


def _combinations(
    names: list[int],
    unsynced: dict[int, bytes],
    databases: list[Snapshot],
    most: int,
    rng: random.Random,
) -> Iterator[tuple[tuple[int, ...], dict[int, bytes], Snapshot]]:
    versions = [
        [(inode, data) for data in (b"", whole[: len(whole) // 2], bytes(len(whole)), whole)]
        for inode, whole in unsynced.items()
    ]
    size = 2 ** len(names) * len(databases) * 4 ** len(versions)
    if size <= most:
        for bits in product((0, 1), repeat=len(names)):
            for torn in product(*versions):
                for database in databases:
                    yield _chosen(names, bits), dict(torn), database
        return
    for number in range(most):
        some = tuple(rng.getrandbits(1) if number > 1 else number for _ in names)
        yield _chosen(names, some), dict(map(rng.choice, versions)), rng.choice(databases)


def _chosen(names: list[int], bits: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(name for name, bit in zip(names, bits, strict=True) if bit)


def _naming_is_sure(step: Step, after: list[Step]) -> bool:
    folder = (step.to or step.path).parent
    synced = any(later.kind == "syncdir" and later.path == folder for later in after)
    return step.kind in _NAMING and synced


def _unsynced(steps: list[Step]) -> dict[int, bytes]:
    data = {step.inode: step.data for step in steps if step.kind == "data"}
    synced = {step.inode for step in steps if step.kind == "sync"}
    return {inode: whole for inode, whole in data.items() if inode not in synced}


def _promised(steps: list[Step]) -> frozenset[str]:
    promised = set[str]()
    for step in steps:
        if step.kind == "ack":
            promised.add(step.path.name)
        elif step.kind == "gone" or (step.kind in {"unlink", "rename"} and _is_block(step.path)):
            promised.discard(step.path.name.removesuffix(".kdn"))
    return frozenset(promised)


def _is_block(path: Path) -> bool:
    return path.parent.parent.name == "blocks"


def _databases(log: RecordingFiles, step: int, rng: random.Random) -> list[Snapshot]:
    newest = log.moments[step]
    database, journal = log.snapshots[newest]
    earlier = log.snapshots[rng.randrange(newest + 1)]
    found: list[Snapshot] = [(None, None), (database, journal), (database, None), earlier]
    if journal:
        found.append((database, journal[: rng.randrange(len(journal))]))
        found.append((database, journal[: len(journal) // 2] + bytes(len(journal) // 2)))
    if database:
        found.append((database[: rng.randrange(len(database))], None))
    return found


def _apply(step: Step, names: dict[Path, int | None]) -> None:
    if step.kind == "mkdir":
        names[step.path] = None
    elif step.kind == "create":
        names[step.path] = step.inode
    elif step.kind == "unlink":
        names.pop(step.path, None)
    elif step.to is not None:
        if step.kind == "rename":
            names.pop(step.path, None)
        names[step.to] = step.inode


def _reachable(path: Path, names: dict[Path, int | None], root: Path) -> bool:
    """Are all folders above it there?"""
    while path != root:
        path = path.parent
        if path not in names:
            return False
    return True


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None
