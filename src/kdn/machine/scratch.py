"""Temporary folders. A process locks its own, so that others recognise and remove what a killed one left."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["locked_folder"]


@contextmanager
def locked_folder(parent: Path, prefix: str, leftovers: str | None = None) -> Iterator[Path]:
    """A new folder in `parent`, which goes at the end of the block, unless it was moved away.

    Those under the same prefix whose process has ended, killed ones too, are removed first; with
    `leftovers`, a pattern of names, all that it matches.  Raises OSError.
    """
    for path in parent.glob(leftovers or f"{glob.escape(prefix)}*"):
        _remove_if_dead(path)
    folder, lock = _made(parent, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _made(parent: Path, prefix: str) -> tuple[Path, int]:
    """Another process may take a folder for a dead one's before it is locked: then the next is made."""
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        with suppress(FileNotFoundError):
            lock = _open(folder)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)


def _remove_if_dead(folder: Path) -> None:
    with suppress(OSError):  # it went meanwhile, or is no folder of ours
        lock = _open(folder)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_uid == os.geteuid():
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
