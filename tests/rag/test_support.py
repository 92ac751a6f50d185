"""When documents hold no answer: the two signs by hand, and real questions where the embedder is."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdn.clock import SystemClock
from kdn.corpus import corpus_files
from kdn.errors import MissingExtra
from kdn.rag import Library
from kdn.rag.minilm import MiniLm, find_minilm
from kdn.rag.support import _MINILM_L6, coverage, support_of
from tests.rag.helpers import small_library, words


def test_coverage_is_the_share_of_a_questions_words() -> None:
    """Who, the and is are no words; cups are cup."""
    assert coverage("Who won the World Cups?", ["The cup is won."]) == pytest.approx(2 / 3)
    assert coverage("Who won the World Cup?", ["the world", "won a cup"]) == 1.0
    assert coverage("Who is it?", ["anything"]) == 0.0
    assert coverage("World", []) == 0.0


def test_near_and_covered_is_enough_and_neither_is_not() -> None:
    far, near = support_of(_MINILM_L6, 0.2, 0.1), support_of(_MINILM_L6, 0.65, 0.8)
    assert far is not None
    assert near is not None
    assert (far.is_enough, near.is_enough) == (False, True)
    assert far.probability < 0.01
    assert near.probability > 0.99
    assert support_of("another embedder", 0.9, 1.0) is None, "its similarities mean something else"


def test_a_library_without_measured_similarities_never_abstains(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The key hangs behind the clock.")
    library = small_library(tmp_path / "library")
    library.ingest(tmp_path / "a.txt")
    assert library.support("Where is the key?") is None
    assert small_library(tmp_path / "empty").support("Where is the key?") is None


@pytest.mark.slow
def test_questions_about_other_things_find_no_support(tmp_path: Path) -> None:
    try:
        embedder = MiniLm(find_minilm())
    except MissingExtra as missing:
        pytest.skip(str(missing))
    library = Library.open(tmp_path / "library", embedder, words, SystemClock())
    library.ingest([path for path in corpus_files() if path.stem in ("pep-0020", "pep-0257")])

    def is_enough(question: str) -> bool:
        support = library.support(question)
        assert support is not None
        return support.is_enough

    assert is_enough("How is a docstring of several lines written?")
    assert is_enough("What does the Zen of Python say about namespaces?")
    assert not is_enough("Who won the 2022 World Cup?")
    assert not is_enough("How much did Apple earn in the third quarter?")
    assert not is_enough("When did Lothair II's mother die?")
