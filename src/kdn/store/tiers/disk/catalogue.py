"""The catalogue: one SQLite row a block, shared by every process on the store's folder.

It decides what fits: room is reserved here, in one transaction, before a byte is written, so the
cap holds for all processes together.  It is never the only copy of anything but ages: lost, it is
rebuilt from the blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from kdn.machine.files import system_errors
from kdn.store.tiers.disk.catalogue_reader import CatalogueReader, Rows, Veil
from kdn.store.tiers.disk.catalogue_writer import CatalogueWriter
from kdn.store.tiers.disk.schema import Totals, catalogue_errors

__all__ = ["Catalogue", "discard_catalogue"]


class Catalogue:
    """One process's way to the shared catalogue: `reader` looks, `writer` changes.

    Raises StoreError when it cannot be used, CatalogueDamaged when it is to be discarded and rebuilt.
    """

    def __init__(
        self, path: Path, owner: str, now: Callable[[], float], veil: Veil | None = None
    ) -> None:
        """With `veil` tokens are written veiled; rows that another key veiled, or any without it, are
        passed over as if they were not there."""
        rows = Rows(veil)
        doing = f"opening the catalogue {path}"
        with system_errors(doing), catalogue_errors(path), ExitStack() as undo:
            self.writer = CatalogueWriter(path, owner, now, rows, self._committed)
            undo.callback(self.writer.close)
            self.reader = CatalogueReader(path, rows)
            undo.callback(self.reader.close)
            self.reader.refresh_totals()
            undo.pop_all()

    def close(self) -> None:
        try:
            self.writer.close()
        finally:
            self.reader.close()

    def _committed(self, totals: Totals) -> None:
        self.reader.totals = totals


def discard_catalogue(path: Path) -> None:
    """Remove a damaged catalogue. To be called while no process uses it."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
