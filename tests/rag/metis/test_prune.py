"""METIS' Algorithm 1, the confidence threshold with the ten recent spaces, and the feedback schedule."""

from __future__ import annotations

import pytest

from kdn.errors import BadInput
from kdn.rag.metis import ConfigurationSpace, Method, QuestionProfile, RagConfiguration, prune
from kdn.rag.metis.feedback import FeedbackSchedule
from kdn.rag.metis.prune import RecentSpaces

STUFF, RERANK, REDUCE = Method.STUFF, Method.MAP_RERANK, Method.MAP_REDUCE


def profile(
    joint: bool, complexity: bool, pieces: int = 2, confidence: float = 1.0
) -> QuestionProfile:
    return QuestionProfile(joint, complexity, pieces, (40, 90), confidence)


@pytest.mark.parametrize(
    ("joint", "complexity", "pieces", "methods", "chunks"),
    [
        (False, False, 1, {RERANK}, (1, 3)),
        (False, True, 2, {RERANK}, (2, 6)),  # the corner the paper leaves open
        (True, False, 3, {STUFF}, (3, 9)),
        (True, True, 4, {STUFF, REDUCE}, (4, 12)),
        (True, True, 10, {STUFF, REDUCE}, (10, 30)),
    ],
)
def test_the_branch_table_of_the_paper(
    joint: bool, complexity: bool, pieces: int, methods: set[Method], chunks: tuple[int, int]
) -> None:
    space = prune(profile(joint, complexity, pieces))
    assert space.methods == methods
    assert (space.min_chunks, space.max_chunks) == chunks
    assert (space.min_summary_tokens, space.max_summary_tokens) == (40, 90)


def test_pruning_leaves_a_fiftieth_of_the_space_or_less() -> None:
    """Of 35 + 35 + 35 x 18 configurations of the study, in steps of ten tokens."""
    left = list(prune(profile(joint=True, complexity=False, pieces=2)).configurations())
    assert len(left) == 5
    assert 700 / len(left) >= 50


def test_summaries_go_in_steps_of_ten_up_to_the_longest() -> None:
    space = ConfigurationSpace(frozenset({REDUCE}), 1, 1, 40, 65)
    assert [one.summary_tokens for one in space.configurations()] == [40, 50, 60, 65]


def test_a_configuration_without_sense_is_refused() -> None:
    with pytest.raises(BadInput, match="36 chunks"):
        RagConfiguration(STUFF, 36)
    with pytest.raises(BadInput, match="map_reduce needs a length"):
        RagConfiguration(REDUCE, 3)
    with pytest.raises(BadInput, match="map_reduce needs a length"):
        RagConfiguration(STUFF, 3, 40)


def test_a_profile_under_ninety_percent_takes_the_space_of_the_last_ten() -> None:
    recent = RecentSpaces()
    for pieces in range(1, 10):
        recent.space(profile(joint=True, complexity=False, pieces=pieces))
    for _ in range(3):
        recent.space(profile(joint=False, complexity=False, pieces=4, confidence=0.9))
    space, why = recent.space(profile(joint=True, complexity=True, pieces=10, confidence=0.89))
    # Ten are remembered: stuffed with 3 to 9 pieces, and three times mapped with 4.
    assert space.methods == {STUFF, RERANK}
    assert (space.min_chunks, space.max_chunks) == (3, 27)
    assert "89% sure" in why
    assert "last 10 queries" in why


def test_an_unsure_profile_without_a_past_is_acted_on_and_not_remembered() -> None:
    recent = RecentSpaces()
    unsure = profile(joint=True, complexity=True, confidence=0.2)
    assert recent.space(unsure)[0] == prune(unsure)
    other = profile(joint=False, complexity=False, confidence=0.3)
    assert recent.space(other)[0] == prune(other)


def test_every_thirtieth_query_is_fed_back() -> None:
    schedule = FeedbackSchedule()
    due = [number for number in range(1, 91) if schedule.is_due()]
    assert due == [30, 60, 90]


def test_the_median_lies_in_the_middle() -> None:
    space = prune(profile(joint=False, complexity=False, pieces=2))
    assert space.median() == RagConfiguration(RERANK, 4)


def test_a_space_shrinks_to_the_chunks_that_were_found() -> None:
    space = prune(profile(joint=True, complexity=False, pieces=4)).within(3)
    assert [one.num_chunks for one in space.configurations()] == [3]
    assert space.within(0).max_chunks == 1
