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

    The system releases it when the process ends, however it ends.
    """
    lock = try_lock(folder / "writer.lock")
    if lock is None:
        raise StoreError(
            f"{folder}: another ingest or delete runs on this library; wait for it to end"
        )
    with lock:
        try:
            yield
        finally:
            make_tree_private(folder)
