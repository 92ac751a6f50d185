"""A store's folder and its block files: opened, unsealed, written whole, quarantined when damaged."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from kdn.core import BlockKey
from kdn.errors import CorruptBlock, LostBlock, NoSpace
from kdn.machine.files import Files, system_errors
from kdn.machine.memory import OWN_PAGES_FROM, allocate
from kdn.store.block.format import ALIGN, EncodedBlock
from kdn.store.block.pieces import AT_ONCE, read_in_pieces
from kdn.store.block.reader import Handle, Take
from kdn.store.tiers.disk.marker import claim
from kdn.store.tiers.seal import MAX_SEALED_BYTES, SEAL_BYTES, KeyRing, is_sealed
from kdn.trace import Trace

__all__ = ["BlockFiles", "StoreFolder"]


SUFFIX = ".kdn"
_HEX = "0123456789abcdef"
_KEY_LENGTH = 64
_NAME_LENGTH = _KEY_LENGTH + len(SUFFIX)


class StoreFolder:
    """A folder that is a store of this format, made on first use, with this process at work in it.

    Raises ForeignStore for a folder with other things in it or of another format, and StoreError
    for one that cannot be written.
    """

    read_only = ""
    """Why nothing in it is changed, where that is so."""

    def __init__(self, path: Path, files: Files | None = None) -> None:
        self.path = path
        self._files = files or Files()
        self.identity = self._claim()
        self.owner = secrets.token_hex(8)
        self._owner_lock: int | None = None

    def _claim(self) -> str:
        """Make the folder a store, if it is none; its identity."""
        path = self.path
        with system_errors(f"opening the store {path}"):
            self._files.make_folders(path)
            if path.stat().st_mode & 0o077 and path.stat().st_uid == os.geteuid():
                path.chmod(0o700)  # a folder that an older kdn made
            identity = claim(path, self._files)
            for name in ("blocks", "writing", "quarantine", "owners"):
                self._files.make_durable(path / name)
        return identity

    def refuse_changes(self) -> None:
        """Raises NoSpace where it is read-only."""
        if self.read_only:
            raise NoSpace(self.read_only)

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
        return (key for key, _ in self._block_files())

    def sizes(self) -> dict[BlockKey, int]:
        """The length of every block file that is there."""
        sizes = dict[BlockKey, int]()
        for key, file in self._block_files():
            with suppress(FileNotFoundError):  # dropped by another process meanwhile
                sizes[key] = file.stat(follow_symlinks=False).st_size
        return sizes

    def damaged(self) -> Iterator[BlockKey]:
        """The key of every block in quarantine."""
        return (key for key, _ in _keyed_files(self.path / "quarantine"))

    def files(self) -> Iterator[Path]:
        """Every file that counts against the cap."""
        for room in ("blocks", "quarantine", "writing"):
            found = (self.path / room).rglob("*")
            yield from (path for path in found if path.is_file() and not path.is_symlink())

    def _block_files(self) -> Iterator[tuple[BlockKey, os.DirEntry[str]]]:
        with os.scandir(self.path / "blocks") as shards:
            folders = [shard.path for shard in shards if shard.is_dir(follow_symlinks=False)]
        for folder in folders:
            yield from _keyed_files(folder)

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

    def register(self) -> None:
        """Count as a process that uses this store, until `unregister` or the end of the process.

        To be called inside `opening`.
        """
        with system_errors(f"registering with the store {self.path}"):
            path = self.path / "owners" / self.owner
            self._owner_lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._owner_lock, fcntl.LOCK_EX)

    def unregister(self) -> None:
        if self._owner_lock is not None:
            with suppress(OSError):  # the lock goes all the same, and then the name says nothing
                self._files.remove(self.path / "owners" / self.owner)
            os.close(self._owner_lock)
            self._owner_lock = None

    def sweep(self) -> list[str]:
        """Remove what processes that have ended left half-written; returns the owners that run.

        To be called inside `opening`, when no process can be between making its file and locking it.
        """
        with system_errors(f"sweeping the store {self.path}"):
            owners = self.path / "owners"
            running = [
                path.name for path in owners.iterdir() if not _removed_if_dead(path, self._files)
            ]
            for path in (self.path / "writing").iterdir():
                if path.name.partition("-")[0] not in running:
                    self._files.remove(path)
        return running


def _removed_if_dead(owner: Path, files: Files) -> bool:
    """Is the owner a process that has ended? Then its file is removed."""
    try:
        descriptor = os.open(owner, os.O_RDWR)
    except FileNotFoundError:  # it ended just now
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        files.remove(owner)
        return True
    finally:
        os.close(descriptor)


def _keyed_files(folder: str | os.PathLike[str]) -> Iterator[tuple[BlockKey, os.DirEntry[str]]]:
    """The files in the folder that have a block's name."""
    with os.scandir(folder) as entries:
        files = [entry for entry in entries if entry.is_file(follow_symlinks=False)]
    for file in files:
        name = file.name
        # The length first, which rules out nearly all that is no block: a large store has many names.
        key = name[:_KEY_LENGTH]
        if len(name) == _NAME_LENGTH and name.endswith(SUFFIX) and not key.strip(_HEX):
            yield BlockKey(key), file


_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY
"""A pipe in a block's place does not wait for a writer, and a link is not followed."""


class _FileHandle(Handle):
    """An open block file: it can be read to its end even after it was unlinked.

    Reads cover whole pages, as O_DIRECT wants it; so do the parts of a block.
    """

    at_once = AT_ONCE

    def __init__(self, descriptor: int, files: Files) -> None:
        """Takes the descriptor over. Raises CorruptBlock for what is no file of a block's size."""
        self._descriptor: int | None = descriptor
        self._files = files
        self._closing = threading.Lock()
        self._head_bytes = 0  # came already: a file's seal and its header are looked at in turn
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_SEALED_BYTES:
            self.close()
            raise CorruptBlock(f"what lies there, of {found.st_size} bytes, is no block's file")
        try:
            # What is handed out was read: a part, or all of the file.
            self.buffer = allocate(found.st_size, zeroed=False)
        except (MemoryError, OSError) as error:
            self.close()
            raise LostBlock(f"no memory for a block of {found.st_size} bytes") from error

    def read(self, start: int, stop: int) -> memoryview:
        size, wanted = self.buffer.nbytes, slice(start, stop)
        start, stop = start // ALIGN * ALIGN, min(-(-stop // ALIGN) * ALIGN, size)
        got = max(start, min(self._head_bytes, stop))
        while got < stop and (more := self._read_some(got, stop)):
            got += more
        if got != stop:
            raise CorruptBlock(f"bytes {start} to {stop} were asked for, {got - start} are there")
        if start <= self._head_bytes:
            self._head_bytes = max(self._head_bytes, stop)
        return self.buffer[wanted]

    def read_each(self, ranges: Sequence[tuple[int, int]], then: Take) -> None:
        """In pieces: the next one is read while the last is taken, which is cached still."""
        read_in_pieces(self.read, ranges, then)

    def _read_some(self, start: int, stop: int) -> int:
        """How many bytes came: less than all is no end of the file, and an error is no damage to it."""
        assert self._descriptor is not None
        try:
            return self._files.read(self._descriptor, self.buffer[start:stop], start)
        except OSError as error:
            raise LostBlock(f"bytes {start} to {stop} cannot be read: {error}") from error

    def close(self) -> None:
        with self._closing:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None


class BlockFiles:
    """One file a block in `folder`, sealed where there is a `ring`.

    `direct` reads past the operating system's cache, where the file system can.
    """

    def __init__(
        self,
        folder: StoreFolder,
        files: Files,
        ring: KeyRing | None,
        trace: Trace,
        *,
        direct: bool,
    ) -> None:
        self._folder = folder
        self._files = files
        self._ring = ring
        self._trace = trace
        self._direct = direct

    def exists(self, key: BlockKey) -> bool:
        """Is there a regular file in the block's place?"""
        try:
            return stat.S_ISREG(self._folder.block(key).lstat().st_mode)
        except OSError:
            return False

    def open(self, key: BlockKey) -> Handle | None:
        """The block's file, unsealed on the way if need be; None when it cannot be read.

        Raises FileNotFoundError when there is none, CorruptBlock when it is no block.
        """
        try:
            file = _FileHandle(self._descriptor(self._folder.block(key)), self._files)
        except FileNotFoundError:
            raise
        except OSError as error:
            if not self.exists(key):
                raise CorruptBlock(f"what lies in the place of block {key} is no file") from error
            self._trace.event("store.unreadable", key=key, reason=str(error))
            return None
        return self._unsealed(key, file)

    def stored_form(self, block: EncodedBlock) -> memoryview:
        """The bytes of the block's file."""
        if self._ring is None:
            return block.data
        return self._ring.seal(block.key, block.header.id.salt, block.data)

    def write(self, data: memoryview, number: int) -> None:
        """A temporary file by that number, on the device. Raises NoSpace, StoreError."""
        self._files.write_temporary(self._folder.temporary(number), data)

    def publish(self, key: BlockKey, number: int) -> None:
        """Give the temporary file the block's name, for good. Raises StoreError."""
        with system_errors(f"publishing block {key}"):
            self._files.remove(self._folder.quarantined(key))
        self._files.publish(self._folder.temporary(number), self._folder.block(key))

    def withdraw(self, number: int) -> None:
        """Remove the temporary file by that number, if it is there and the device lets it go."""
        with suppress(OSError):
            self._files.remove(self._folder.temporary(number))

    def take_back(self, key: BlockKey) -> None:
        """Remove a block's file that no row counts: its bytes would escape the cap.

        What a failing device does not let go is counted again at the next opening.
        """
        with suppress(OSError):
            self._files.remove(self._folder.block(key))

    def remove(self, key: BlockKey) -> bool:
        """Remove a block's file, and the one in quarantine: True once they are gone. Raises StoreError."""
        with system_errors(f"dropping block {key}"):
            self._files.remove(self._folder.block(key))
            self._files.remove(self._folder.quarantined(key))
        return True

    def remove_quarantined(self, key: BlockKey) -> None:
        """Remove a damaged block's file. Raises StoreError."""
        with system_errors(f"dropping damaged block {key}"):
            self._files.remove(self._folder.quarantined(key))

    def set_aside(self, key: BlockKey) -> int:
        """Move a damaged block's file to quarantine; its size. One that is too long for a block is removed:
        no row may tell its size. Raises StoreError."""
        path = self._folder.block(key)
        with system_errors(f"setting block {key} aside"), suppress(FileNotFoundError):
            if self.size(key) is not None:
                return self._files.move(path, self._folder.quarantined(key))
            self._files.remove(path)
        return 0

    def size(self, key: BlockKey) -> int | None:
        """Length of a block's file; None where there is none, and where it is too long for a block."""
        try:
            found = self._folder.block(key).lstat()
        except OSError:
            return None
        is_block = stat.S_ISREG(found.st_mode) and found.st_size <= MAX_SEALED_BYTES
        return found.st_size if is_block else None

    def size_and_time(self, key: BlockKey) -> tuple[int, float]:
        """Length of a block's file, and when it was written. Raises FileNotFoundError."""
        found = self._folder.block(key).stat()
        return found.st_size, found.st_mtime

    def sync_names(self, keys: set[BlockKey]) -> None:
        """Bring the names of these files on to the device: their writer may have died before it did."""
        with system_errors(f"opening the store {self._folder.path}"):
            for folder in {self._folder.block(key).parent for key in keys}:
                self._files.sync_folder(folder)

    def sizes(self) -> dict[BlockKey, int]:
        """The length of every block file that is there."""
        return self._folder.sizes()

    def quarantined_keys(self) -> Iterator[BlockKey]:
        """The key of every file in quarantine."""
        return self._folder.damaged()

    def _descriptor(self, path: Path) -> int:
        """For reading; a file system that has no O_DIRECT is read as usual."""
        if self._direct and hasattr(os, "O_DIRECT"):
            with suppress(OSError):
                size_bytes = path.stat().st_size
                if size_bytes >= OWN_PAGES_FROM and size_bytes % ALIGN == 0:
                    return os.open(path, _READ | os.O_DIRECT)
        return os.open(path, _READ)

    def _unsealed(self, key: BlockKey, file: _FileHandle) -> Handle | None:
        try:
            sealed = is_sealed(file.read(0, min(SEAL_BYTES, file.buffer.nbytes)))
            if not sealed and self._ring is None:
                return file
            if self._ring is not None:
                return self._opened(key, file, self._ring, sealed=sealed)
        except BaseException:
            file.close()
            raise
        file.close()
        self._trace.event("store.unreadable", key=key, reason="sealed, and this store is not")
        return None

    @staticmethod
    def _opened(key: BlockKey, file: _FileHandle, ring: KeyRing, *, sealed: bool) -> Handle:
        """The block in a sealed file. The folder is sealed with this key, so all else is damage."""
        if not sealed:
            raise CorruptBlock(f"block {key} is not sealed, and this store is")
        try:
            return ring.open(key, file)
        except LostBlock as error:
            if isinstance(error.__cause__, OSError):
                raise  # not read
            raise CorruptBlock(f"block {key}: its seal does not open") from error
