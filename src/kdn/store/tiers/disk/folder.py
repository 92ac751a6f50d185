"""The store's folder: its identity, where things lie in it, and which processes are at work in it.

kdn-store.json    says that this is a store, of which format, and its identity
seal.json         says whether blocks are sealed here, and checks the key
catalogue.sqlite  what is known of every block (rebuilt from the blocks when lost)
blocks/ab/KEY.kdn one file a block, spread over 256 folders by the key's first two digits
writing/          blocks that are being written, named OWNER-NUMBER
quarantine/       damaged blocks
owners/           one locked file for every process at work; the lock dies with the process
opening           locked while a process opens the store
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from kdn.core import BlockKey
from kdn.errors import ForeignStore
from kdn.machine.files import Files, system_errors
from kdn.store.block.format import FORMAT_VERSION

__all__ = ["StoreFolder"]

MARKER = "kdn-store.json"
SUFFIX = ".kdn"
_HEX = "0123456789abcdef"
_KEY_LENGTH = 64
_NAME_LENGTH = _KEY_LENGTH + len(SUFFIX)
_HARMLESS = {"lost+found", ".DS_Store"}


class _Marker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kdn_store: int
    """The format version."""
    identity: str


class StoreFolder:
    """A folder that is a store of this format, made on first use, with this process at work in it.

    Raises ForeignStore for a folder with other things in it or of another format, and StoreError
    for one that cannot be written.
    """

    def __init__(self, path: Path, files: Files | None = None) -> None:
        self.path = path
        self._files = files or Files()
        with system_errors(f"opening the store {path}"):
            self._files.make_folders(path)
            if path.stat().st_mode & 0o077 and path.stat().st_uid == os.geteuid():
                path.chmod(0o700)  # a folder that an older kdn made
            self.identity = _claim(path, self._files)
            for name in ("blocks", "writing", "quarantine", "owners"):
                self._files.make_lasting(path / name)
        self.owner = secrets.token_hex(8)
        self._owner_lock: int | None = None

    @property
    def catalogue(self) -> Path:
        return self.path / "catalogue.sqlite"

    def block(self, key: BlockKey) -> Path:
        """Where a block's file is, or would be."""
        return self.path / "blocks" / key[:2] / f"{key}{SUFFIX}"

    def quarantined(self, key: BlockKey) -> Path:
        return self.path / "quarantine" / f"{key}{SUFFIX}"

    def temporary(self, number: int) -> Path:
        return self.path / "writing" / f"{self.owner}-{number}"

    def blocks(self) -> Iterator[BlockKey]:
        """The key of every block file that is there."""
        with os.scandir(self.path / "blocks") as shards:
            folders = [shard.path for shard in shards if shard.is_dir(follow_symlinks=False)]
        for folder in folders:
            yield from _keys(folder)

    def damaged(self) -> Iterator[BlockKey]:
        """The key of every block in quarantine."""
        return _keys(self.path / "quarantine")

    def files(self) -> Iterator[Path]:
        """Every file that counts against the cap."""
        for room in ("blocks", "quarantine", "writing"):
            found = (self.path / room).rglob("*")
            yield from (path for path in found if path.is_file() and not path.is_symlink())

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Keeps other processes from opening the store meanwhile."""
        with system_errors(f"locking the store {self.path}"):
            descriptor = os.open(self.path / "opening", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            os.close(descriptor)

    def sign_in(self) -> None:
        """Be known as at work here until `sign_out` or death. To be called inside `opening`."""
        with system_errors(f"signing in to the store {self.path}"):
            path = self.path / "owners" / self.owner
            self._owner_lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._owner_lock, fcntl.LOCK_EX)

    def sign_out(self) -> None:
        if self._owner_lock is not None:
            self._files.remove(self.path / "owners" / self.owner)
            os.close(self._owner_lock)
            self._owner_lock = None

    def sweep(self) -> list[str]:
        """Remove what dead processes left half-written; returns the living owners.

        To be called inside `opening`, when no process can be between signing in and locking.
        """
        with system_errors(f"sweeping the store {self.path}"):
            owners = self.path / "owners"
            living = [path.name for path in owners.iterdir() if not _buried(path, self._files)]
            for path in (self.path / "writing").iterdir():
                if path.name.partition("-")[0] not in living:
                    self._files.remove(path)
        return living


def _claim(path: Path, files: Files) -> str:
    """The identity of the store in `path`, which becomes a store if it is empty."""
    marker = path / MARKER
    if not marker.exists():
        strangers = sorted(
            entry.name
            for entry in path.iterdir()
            if entry.name not in _HARMLESS and MARKER not in entry.name
        )
        if strangers and not marker.exists():
            raise ForeignStore(
                f"{path} is no kdn store and not empty (it holds {strangers[0]}): choose another"
                " folder for the store, or an empty one"
            )
        _write_marker(marker, files)
    return _read_marker(marker)


def _write_marker(marker: Path, files: Files) -> None:
    """Whole or not at all, there before anything else is, and the first of two processes wins."""
    mine = marker.with_name(f"{MARKER}.{secrets.token_hex(8)}")
    text = msgspec.json.encode(_Marker(FORMAT_VERSION, secrets.token_hex(16)))
    files.write_temporary(mine, memoryview(text))
    try:
        files.link(mine, marker)
    except FileExistsError:
        pass  # the other process's identity holds
    finally:
        files.remove(mine)
    files.sync_folder(marker.parent)


def _read_marker(marker: Path) -> str:
    try:
        found = msgspec.json.decode(marker.read_bytes(), type=_Marker)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ForeignStore(
            f"{marker} cannot be read as a store's marker ({error}): choose another folder for the"
            " store, or remove this one if its blocks may go"
        ) from error
    if found.kdn_store != FORMAT_VERSION:
        raise ForeignStore(
            f"{marker.parent} is a store of format {found.kdn_store}, this kdn reads"
            f" {FORMAT_VERSION}: use the kdn that made it, or another folder"
        )
    return found.identity


def _buried(owner: Path, files: Files) -> bool:
    """Removes the sign of an owner that is dead; False for a living one."""
    descriptor = os.open(owner, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        files.remove(owner)
        return True
    finally:
        os.close(descriptor)


def _keys(folder: str | Path) -> Iterator[BlockKey]:
    with os.scandir(folder) as files:
        names = [file.name for file in files if file.is_file(follow_symlinks=False)]
    for name in names:
        # The length first: it rules out nearly all that is no block, and a hundred thousand
        # names are looked at when a large store opens.
        key = name[:_KEY_LENGTH]
        if len(name) == _NAME_LENGTH and name.endswith(SUFFIX) and not key.strip(_HEX):
            yield BlockKey(key)
