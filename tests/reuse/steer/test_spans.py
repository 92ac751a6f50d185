"""Marked spans as factors of columns: whole tokens, parts of tokens, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdn.errors import BadInput
from kdn.model import PlacedText
from kdn.reuse.steer import (
    LOOK_SHARE,
    MarkedSpan,
    column_factors,
    sentence_positions,
    sentence_spans,
    spans_of,
    steer_of,
)

TEXT = "The key is red. The door is blue."
#       0   4   8  11   15
EDGES = [(0, 3), (3, 7), (7, 10), (10, 14), (14, 15), (15, 19), (19, 24), (24, 27), (27, 33)]
"""The, key, is, red, ., The, door, is, blue. -- each with the space before it."""
DOCUMENT = PlacedText(TEXT, 20, EDGES, 0, "doors.md")
ASKED = PlacedText("Which key?", 40, [(0, 5), (5, 9), (9, 10)])
PLACES = [DOCUMENT, ASKED]


def factors(*spans: dict[str, Any]) -> dict[int, float]:
    return dict(column_factors(spans_of(list(spans)), PLACES))


def test_a_span_marks_its_tokens_and_the_space_before_a_word_is_not_missed() -> None:
    assert factors({"text": "door is", "weight": 3}) == pytest.approx({26: 3, 27: 3})
    assert factors({"text": " door is", "weight": 3}) == pytest.approx({26: 3, 27: 3})


def test_offsets_in_a_document_mark_the_same_and_name_it_by_number_or_id() -> None:
    for name in (0, "doors.md"):
        span = {"document": name, "start": 20, "stop": 27, "weight": 3}
        assert factors(span) == pytest.approx({26: 3, 27: 3})


def test_a_text_is_marked_wherever_it_stands_or_in_one_document() -> None:
    assert factors({"text": "key", "weight": 4}) == pytest.approx({21: 4, 41: 4})
    assert factors({"text": "key", "document": 0, "weight": 4}) == pytest.approx({21: 4})


def test_a_token_that_straddles_gets_the_weight_to_the_power_of_its_part() -> None:
    """Of `blue.` three letters of five."""
    assert factors({"text": "lue", "weight": 32}) == pytest.approx({28: 10**0.6}), "clipped to 10"
    both = factors({"text": "bl", "weight": 4}, {"text": "ue.", "weight": 9})
    assert both == pytest.approx({28: 4 ** (2 / 5) * 9 ** (3 / 5)})


@pytest.mark.parametrize(("weight", "used"), [(0, 0.01), (0.5, 0.5), (1000, 10)])
def test_weights_are_clipped(weight: float, used: float) -> None:
    assert MarkedSpan(weight, "key").clipped == used


def test_an_id_of_two_documents_names_neither_and_a_number_does() -> None:
    twins = [replace(DOCUMENT, start=20 + 20 * n, document=n) for n in range(2)]
    for where in ({"text": "key"}, {"start": 0, "stop": 3}):
        with pytest.raises(BadInput, match="names 2 documents; give the number of one"):
            column_factors(spans_of([{**where, "document": "doors.md", "weight": 3}]), twins)
    marked = column_factors([MarkedSpan(3, document=1, start=0, stop=3)], twins)
    assert dict(marked) == pytest.approx({40: 3})


def test_numbers_of_numpy_are_numbers() -> None:
    zero, start, stop = np.array([0, 20, 27])
    span = {"document": zero, "start": start, "stop": stop, "weight": np.float32(3)}
    assert factors(span) == pytest.approx({26: 3, 27: 3})


@given(cut=st.integers(0, len(TEXT)), weight=st.floats(0.01, 10))
def test_two_halves_of_a_text_are_the_whole(cut: int, weight: float) -> None:
    halves = [(0, cut), (cut, len(TEXT))]
    spans = [
        MarkedSpan(weight, document=0, start=a, stop=b) for a, b in halves if TEXT[a:b].strip()
    ]
    whole = [MarkedSpan(weight, document=0, start=0, stop=len(TEXT))]
    found, expected = column_factors(spans, PLACES), column_factors(whole, PLACES)
    assert [c for c, _ in found] == [c for c, _ in expected]
    assert [math.log(f) for _, f in found] == pytest.approx([math.log(f) for _, f in expected])


@pytest.mark.parametrize(
    ("spans", "says"),
    [
        ([{"text": "window", "weight": 3}], "'window' is not in any document or message"),
        ([{"text": "Which", "document": 0, "weight": 3}], "'Which' is not in that document"),
        ([{"text": "key", "document": "a.md", "weight": 3}], "not here; there are 'doors.md'"),
        ([{"text": "key is", "weight": 3}, {"text": "is red", "weight": 2}], "overlap"),
        ([{"text": "key", "weight": "3"}], "the weight of the span 'key' is '3'"),
        ([{"text": "key", "weight": True}], "give a number from 0 to 1000"),
        ([{"text": "key", "weight": math.nan}], "is nan"),
        ([{"text": "key", "weight": -1}], "is -1"),
        ([{"text": "key", "weight": 1e9}], "is 1000000000.0"),
        ([{"text": "key"}], "has no weight"),
        ([{"text": " ", "weight": 3}], "give words of a document or message"),
        ([{"weight": 3}], "needs a text, or a document with start and stop"),
        ([{"document": 0, "start": 5, "stop": 5, "weight": 3}], "is empty"),
        ([{"document": 0, "start": 5, "stop": 99, "weight": 3}], "document's 33 characters"),
        ([{"document": 0, "start": 3, "stop": 4, "weight": 3}], "holds white space alone"),
        ([{"document": True, "text": "key", "weight": 3}], "a span's document is True"),
        ([{"document": 0, "start": 0.5, "stop": 9, "weight": 3}], "start of a span is 0.5"),
        ([{"text": "key", "start": 0, "weight": 3}], "give its text or its offsets"),
        ([{"text": "key", "size": 3}], "a span is a mapping of weight, text"),
        (["key"], "a span is a mapping"),
        ("louder", "it can be 'look', 'look-always' or a list of spans"),
        (7, "give a list of them"),
    ],
)
def test_what_cannot_be_steered_is_refused_in_one_sentence(spans: object, says: str) -> None:
    with pytest.raises(BadInput, match=says) as caught:
        steer_of(spans, PLACES)
    assert "\n" not in str(caught.value)


def test_a_text_that_is_nowhere_names_no_document() -> None:
    """A prompt that was cut to its last tokens has no places left."""
    with pytest.raises(BadInput, match="'key' is not in any document or message"):
        steer_of([{"text": "key", "weight": 3}], ())


def test_sentences_end_at_marks_and_lines_and_short_ones_go_on() -> None:
    text = "Mr. Ames lives in the old house. He sings!\nA line without a mark\n\nThe end of it is near."
    assert [text[a:b] for a, b in sentence_spans(text)] == [
        "Mr. Ames lives in the old house.",
        "He sings!\nA line without a mark",
        "The end of it is near.",
    ]
    assert sentence_spans("short") == [(0, 5)]
    assert sentence_spans("") == []


def test_sentences_of_documents_are_runs_of_positions_that_do_not_meet() -> None:
    text = "The key hangs behind it. The door of it is blue."
    edges = [(0, 3), (3, 22), (22, 25), (25, 48)]  # a token holds the end and the space
    places = [PlacedText(text, 5, edges, 0), ASKED]
    assert sentence_positions(places) == (range(5, 8), range(8, 9))


def test_a_look_without_documents_is_refused() -> None:
    look = steer_of("look", PLACES)
    assert look.sentences == (range(20, 29),)
    assert look.least_share == LOOK_SHARE
    assert steer_of("look-always", PLACES) == replace(look, least_share=0)
    with pytest.raises(BadInput, match="a look needs documents"):
        steer_of("look", [ASKED])
