"""The gate to LanceDB: what its errors become."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdn.errors import NoSpace, StoreError
from kdn.rag.tables import Tables, gate
from tests.rag.helpers import small_library


def test_a_full_disk_and_other_failures_are_told_apart() -> None:
    with pytest.raises(NoSpace, match="free some space"), gate("writing"):
        raise OSError(28, "No space left on device")
    with pytest.raises(StoreError, match="writing failed: odd") as caught, gate("writing"):
        raise RuntimeError("odd")
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_damaged_tables_are_one_sentence(tmp_path: Path) -> None:
    library = small_library(tmp_path)
    (tmp_path / "doc.txt").write_text("some words")
    library.ingest([tmp_path / "doc.txt"])
    for file in (tmp_path / "tables").rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    with pytest.raises(StoreError, match="opening"):
        Tables(tmp_path / "tables", 256)
