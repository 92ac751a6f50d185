"""One writer at a time on a folder, across processes; readers need no lock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdn.errors import StoreError
from kdn.machine.files import make_tree_private, try_lock

__all__ = ["writing"]


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the folder's writer lock. Raises StoreError immediately when another writer has it.

    So it does where the folder cannot be written.  The system releases the lock when the process
    ends, however it ends.
    """
    try:
        lock = try_lock(folder / "writer.lock")
    except OSError as error:
        raise StoreError(
            f"{folder}: the library cannot be written ({error.strerror}); check its rights"
        ) from error
    if lock is None:
        raise StoreError(
            f"{folder}: another ingest or delete runs on this library; wait for it to end"
        )
    with lock:
        try:
            yield
        finally:
            make_tree_private(folder)
