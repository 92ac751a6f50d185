"""Fusing rankings, with scores one can add up by hand."""

from __future__ import annotations

import pytest

from kdn.rag.ranking import deepened, fuse, parts_in_order


def test_scores_are_stretched_and_averaged() -> None:
    by_meaning = [("a", 0.9), ("b", 0.7), ("c", 0.5)]  # 1, 0.5, 0
    by_words = [("b", 20.0), ("d", 10.0)]  # 1, 0
    fused = fuse([by_meaning, by_words])
    assert [key for key, _ in fused] == ["b", "a", "c", "d"]
    assert [score for _, score in fused] == pytest.approx([0.75, 0.5, 0, 0])


def test_a_missing_or_flat_ranking_is_harmless() -> None:
    assert fuse([[("a", 2.0), ("b", 1.0)], []]) == [("a", 0.5), ("b", 0.0)]
    assert fuse([[("a", 2.0), ("b", 2.0)]]) == [("a", 1.0), ("b", 1.0)]
    assert fuse([[], []]) == []


def test_a_part_counts_by_its_best_passage() -> None:
    scores = [("a", 0.9), ("b", 0.8), ("c", 0.8), ("d", 0.8)]
    part_of = {"a": "one", "b": "two", "c": "two", "d": "two"}
    assert list(parts_in_order(scores, part_of).items()) == [("one", 0.9), ("two", 0.8)]


def test_a_deeper_search_adds_behind_what_was_found() -> None:
    """It stretches scores otherwise, and would put "two" first."""
    found = deepened({"one": 0.8, "two": 0.6}, {"two": 0.9, "one": 0.85, "new": 0.7, "last": 0.1})
    assert list(found.items()) == [("one", 0.8), ("two", 0.6), ("new", 0.6), ("last", 0.1)]
