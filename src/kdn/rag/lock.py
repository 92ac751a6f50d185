"""One writer at a time on a folder, across processes; readers need no lock."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdn.errors import StoreError
from kdn.machine.files import make_tree_private

__all__ = ["writing"]


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the folder's writer lock. Raises StoreError immediately when another writer has it.

    The system lets go of it when the process ends, however it ends.
    """
    descriptor = os.open(folder / "writer.lock", os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreError(
                f"{folder}: another ingest or delete is at work on this library; wait for it to end"
            ) from error
        try:
            yield
        finally:
            make_tree_private(folder)
            fcntl.flock(file, fcntl.LOCK_UN)
