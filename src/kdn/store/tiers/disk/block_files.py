"""The block files of a store's folder: opened, unsealed, written whole, and moved aside when damaged."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kdn.core import BlockKey
from kdn.errors import CorruptBlock, LostBlock
from kdn.machine.files import Files, system_errors
from kdn.machine.process import OWN_PAGES_FROM, allocate
from kdn.store.block.format import ALIGN, EncodedBlock
from kdn.store.block.handle import Handle
from kdn.store.tiers.disk.folder import StoreFolder
from kdn.store.tiers.seal import MAX_SEALED_BYTES, SEAL_BYTES, KeyRing, is_sealed
from kdn.trace import Trace

__all__ = ["BlockFiles"]


_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY
"""A pipe in a block's place does not wait for a writer, and a link is not followed."""


class _FileHandle(Handle):
    """An open block file: it can be read to its end even after it was unlinked.

    Reads cover whole pages, as O_DIRECT wants it; so do the parts of a block.
    """

    def __init__(self, descriptor: int) -> None:
        """Takes the descriptor over. Raises CorruptBlock for what is no file of a block's size."""
        self._descriptor: int | None = descriptor
        self._closing = threading.Lock()
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_SEALED_BYTES:
            self.close()
            raise CorruptBlock(f"what lies there, of {found.st_size} bytes, is no block's file")
        try:
            self.buffer = allocate(found.st_size)
        except (MemoryError, OSError) as error:
            self.close()
            raise LostBlock(f"no memory for a block of {found.st_size} bytes") from error

    def read(self, start: int, stop: int) -> memoryview:
        size, wanted = self.buffer.nbytes, slice(start, stop)
        start, stop = start // ALIGN * ALIGN, min(-(-stop // ALIGN) * ALIGN, size)
        view = self.buffer[start:stop]
        assert self._descriptor is not None
        try:
            got = os.preadv(self._descriptor, [view], start)
        except OSError as error:
            raise CorruptBlock(f"bytes {start} to {stop} cannot be read: {error}") from error
        if got != stop - start:
            raise CorruptBlock(f"bytes {start} to {stop} were asked for, {got} are there")
        return self.buffer[wanted]

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
            file = _FileHandle(self._descriptor(self._folder.block(key)))
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
        self._files.remove(self._folder.quarantined(key))
        self._files.publish(self._folder.temporary(number), self._folder.block(key))

    def withdraw(self, key: BlockKey, number: int) -> None:
        """Bytes that no row counts would escape the cap, so a file does not outlive its row."""
        self._files.remove(self._folder.temporary(number))
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
        """Move a damaged block's file to quarantine; its size. Raises StoreError."""
        aside = self._folder.quarantined(key)
        with system_errors(f"setting block {key} aside"), suppress(FileNotFoundError):
            return self._files.move(self._folder.block(key), aside)
        return 0

    def size_and_time(self, key: BlockKey) -> tuple[int, float]:
        """Length of a block's file, and when it was written. Raises FileNotFoundError."""
        found = self._folder.block(key).stat()
        return found.st_size, found.st_mtime

    def sync_names(self, keys: set[BlockKey]) -> None:
        """Bring the names of these files on to the device: their writer may have died before it did."""
        for folder in {self._folder.block(key).parent for key in keys}:
            self._files.sync_folder(folder)

    def keys(self) -> Iterator[BlockKey]:
        """The key of every block file that is there."""
        return self._folder.blocks()

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
            raise CorruptBlock(f"block {key}: its seal does not open") from error
