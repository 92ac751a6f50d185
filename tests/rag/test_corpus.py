"""The documents that travel with the package."""

from __future__ import annotations

from pathlib import Path

from kdn.corpus import corpus_files
from kdn.rag import Cutting
from tests.rag.helpers import small_library


def test_every_shipped_document_is_taken_in(tmp_path: Path) -> None:
    files = corpus_files()
    assert len(files) >= 8
    library = small_library(tmp_path, passage_tokens=200, part_tokens=Cutting().part_tokens)
    report = library.ingest(files)
    assert len(report.added) == len(files)
    assert report.refused == ()
    library.check()
    found = library.search("the Zen of Python: beautiful is better than ugly", 1)
    assert found[0].passage.title == "PEP 20 – The Zen of Python"  # noqa: RUF001  PEPs write it so
    assert all(part.num_tokens <= 1000 for part in library.parts())
