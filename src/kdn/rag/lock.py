"""One writer at a time on a folder, across processes; readers need no lock."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdn.errors import StoreError

__all__ = ["writing"]


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the folder's writer lock. Raises StoreError immediately when another writer has it.

    The system lets go of it when the process ends, however it ends.
    """
    with (folder / "writer.lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreError(
                f"{folder}: another ingest or delete is at work on this library; wait for it to end"
            ) from error
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
