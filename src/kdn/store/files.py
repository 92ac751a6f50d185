"""Files that are whole or absent, and the one gate through which the system's errors come."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kdn.errors import NoSpace, StoreError

__all__ = ["publish", "remove", "system_errors", "write_temporary"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def system_errors(doing: str) -> Iterator[None]:
    """Translate OSError: NoSpace when the device (or a quota) is full, StoreError otherwise."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _FULL:
            raise NoSpace(f"{doing}: {reason}; free some space or lower the store's cap") from error
        raise StoreError(f"{doing}: {reason}; check the folder or choose another") from error


def write_temporary(path: Path, data: memoryview) -> None:
    """Write all of `data` to `path` and on to the device. Nothing is left of it when that fails."""
    with system_errors(f"writing {path}"):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            rest = data
            while rest.nbytes:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        except BaseException:
            remove(path)
            raise
        finally:
            os.close(descriptor)


def publish(temporary: Path, final: Path) -> None:
    """Give a written file its name, for good: it is there after a power cut, too."""
    with system_errors(f"publishing {final}"):
        if not final.parent.exists():
            final.parent.mkdir(parents=True, exist_ok=True)
            _sync_folder(final.parent.parent)
        temporary.replace(final)
        _sync_folder(final.parent)


def remove(path: Path) -> None:
    """Remove a file that may already be gone."""
    with suppress(FileNotFoundError):
        path.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
