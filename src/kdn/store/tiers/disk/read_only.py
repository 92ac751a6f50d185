"""A store's folder that takes no writes: its blocks are read, and what is noted of them is temporary."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from kdn.core import BlockKey
from kdn.machine.files import system_errors
from kdn.machine.scratch import locked_folder
from kdn.store.tiers.disk.block_files import BlockFiles, StoreFolder
from kdn.store.tiers.disk.marker import read_marker

__all__ = ["ReadOnlyBlockFiles", "ReadOnlyFolder"]


class ReadOnlyFolder(StoreFolder):
    """A store on a disk, or with rights, that this process cannot write.

    The catalogue is a copy in the temporary folder, made to agree with the blocks as any other: uses and
    damage are noted there and forgotten at the end.  Raises ForeignStore, StoreError.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.read_only = f"the store {path} is read-only: its blocks are read, none is written"
        self._copied = ExitStack()
        self._scratch = path

    @property
    def catalogue(self) -> Path:
        return self._scratch / super().catalogue.name

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Nobody else changes what is this process's own."""
        yield

    def register(self) -> None:
        """Copy the catalogue; what another machine changes meanwhile shows as damage of the copy."""
        original = super().catalogue
        with system_errors(f"copying the catalogue of the store {self.path}"):
            scratch = locked_folder(Path(tempfile.gettempdir()), "kdn-catalogue-")
            self._scratch = self._copied.enter_context(scratch)
            for suffix in ("", "-wal"):
                with suppress(FileNotFoundError):
                    name = original.name + suffix
                    shutil.copyfile(original.with_name(name), self._scratch / name)

    def unregister(self) -> None:
        self._copied.close()

    def sweep(self) -> list[str]:
        return []

    def _claim(self) -> str:
        with system_errors(f"opening the store {self.path}"):
            return read_marker(self.path)


class ReadOnlyBlockFiles(BlockFiles):
    """Blocks of such a folder: what would go stays where it is, and only its row goes."""

    def remove(self, key: BlockKey) -> bool:
        return True

    def remove_quarantined(self, key: BlockKey) -> None:
        pass

    def set_aside(self, key: BlockKey) -> int:
        return 0

    def sync_names(self, keys: set[BlockKey]) -> None:
        pass
