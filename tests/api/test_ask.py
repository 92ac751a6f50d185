"""Which parts of documents a question reads, and how much room they have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from kdn.api.ask import find_parts, put_question
from kdn.errors import BadInput, PromptTooLong
from kdn.model import Document
from kdn.rag import Library
from kdn.rank import RankedDocument, Ranking
from tests.rag.helpers import small_library

TEXTS = {
    "falcon.md": "# Falcon\n\nThe falcon dives at great speed from the cliff.\n",
    "boat.md": "# Boat\n\nThe boat leaves the harbour at great speed.\n",
    "key.md": "# Key\n\nThe brass key hangs behind the clock.\n",
}


@pytest.fixture
def library(tmp_path: Path) -> Library:
    pytest.importorskip("lancedb")
    folder = tmp_path / "papers"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    opened = small_library(tmp_path / "library")
    opened.ingest(folder)
    return opened


def never(texts: Sequence[str]) -> Ranking:
    raise AssertionError("nothing is to be ranked")


def backwards(texts: Sequence[str]) -> Ranking:
    """The last text is the best."""
    places = reversed(range(len(texts)))
    return Ranking(tuple(RankedDocument(place, 0.5, 0.0, texts[place]) for place in places), 0, 0)


def test_the_best_part_is_found_and_asked_about(library: Library) -> None:
    (part,) = find_parts(library, "brass key clock", 500, 1, rank=never)
    assert "brass key" in part.text
    messages, documents = put_question("Where is the key?", [part])
    assert [message.role for message in messages] == ["system", "user"]
    assert "Where is the key?" in messages[1].content
    assert documents == [Document(part.key, part.text)]


def test_candidates_are_ordered_by_the_ranking(library: Library) -> None:
    plain = find_parts(library, "great speed", 500, 2, rank=never)
    ranked = find_parts(library, "great speed", 500, 2, candidates=2, rank=backwards)
    assert [part.key for part in ranked] == [part.key for part in reversed(plain)]


def test_what_does_not_fit_is_left_out(library: Library) -> None:
    both = find_parts(library, "great speed", 500, 2, candidates=2, rank=backwards)
    room = both[0].num_tokens + 1
    (first,) = find_parts(library, "great speed", room, 2, candidates=2, rank=backwards)
    assert first.num_tokens <= room


def test_where_nothing_fits_the_smallest_part_is_told(library: Library) -> None:
    found = find_parts(library, "great speed", 500, 3, rank=never)
    least = min(part.num_tokens for part in found)
    for candidates, rank in ((0, never), (1, backwards), (3, backwards)):
        with pytest.raises(PromptTooLong, match=rf"fits in {least - 1} tokens: .* has {least};"):
            find_parts(library, "great speed", least - 1, 1, candidates=candidates, rank=rank)


def test_no_part_at_all_cannot_be_asked_for(library: Library) -> None:
    for candidates in (0, 2):
        with pytest.raises(BadInput, match="max_parts must be at least 1, not 0"):
            find_parts(library, "great speed", 500, 0, candidates=candidates, rank=backwards)


def test_an_empty_library_says_what_to_do(tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    with pytest.raises(BadInput, match="kdn ingest"):
        find_parts(small_library(tmp_path / "empty"), "?", 500, 1, rank=never)
