"""Which chunks are read where the store knows some: by hand, and against a plain search."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdn.errors import BadInput
from kdn.rag.metis import ChunkState, Method, RagConfiguration
from kdn.rag.metis.pick import STORED_WORTH, picked

STUFF, RERANK = Method.STUFF, Method.MAP_RERANK


def chunks(*scores: float, stored: tuple[int, ...] = ()) -> list[ChunkState]:
    return [ChunkState(100, 100 if i in stored else 0, score=s) for i, s in enumerate(scores)]


def test_nothing_stored_reads_the_best() -> None:
    found = picked(RagConfiguration(RERANK, 3), chunks(5, 4, 3, 2), 1, blends=False)
    assert found == RagConfiguration(RERANK, 3)


@pytest.mark.parametrize(
    ("scores", "stored", "places"),
    [
        ((9, 4, 3), (2,), (0, 2)),  # 3 x 1.5 is more than 4
        ((9, 4.6, 3), (2,), ()),  # but less than 4.6
        ((9, 8, 4), (2,), ()),
        ((4, 3, 3, 3), (3,), (0, 3)),  # the best is sure
        ((0, 0, 0), (2,), ()),  # scores that say nothing move nothing
    ],
)
def test_a_stored_chunk_is_read_in_place_of_one_nearly_as_good(
    scores: tuple[float, ...], stored: tuple[int, ...], places: tuple[int, ...]
) -> None:
    found = picked(RagConfiguration(RERANK, 2), chunks(*scores, stored=stored), 1, blends=False)
    assert found.places == places


def test_one_prompt_of_several_picks_only_where_it_blends() -> None:
    """It reuses nothing but its first chunk else: the stored one of those read goes there."""
    here = chunks(5, 4, 4, 4, stored=(1, 3))
    one = RagConfiguration(STUFF, 3)
    assert picked(one, here, 1, blends=False).places == (1, 0, 2)
    assert picked(one, here, 1, blends=True).places == (1, 0, 3)


@given(
    st.lists(st.tuples(st.integers(1, 20), st.booleans()), min_size=1, max_size=7),
    st.integers(1, 7),
    st.integers(0, 7),
)
def test_no_other_choice_is_worth_more(
    drawn: list[tuple[int, bool]], count: int, sure: int
) -> None:
    here = [ChunkState(10, 10 if there else 0, score=score) for score, there in sorted(drawn)[::-1]]
    found = picked(RagConfiguration(RERANK, count), here, sure, blends=False)
    read = found.ordered(range(len(here)))
    most = min(count, len(here))

    def worth(places: tuple[int, ...]) -> float:
        return sum(
            here[place].score * (STORED_WORTH if here[place].num_stored else 1) for place in places
        )

    kept = tuple(range(min(sure, most)))
    every = itertools.combinations(range(len(kept), len(here)), most - len(kept))
    assert worth(tuple(read)) == pytest.approx(max(worth(kept + others) for others in every))
    assert read == sorted(set(read))
    assert set(kept) <= set(read)


@pytest.mark.parametrize("places", [(0,), (0, 0), (0, -1), (0, 1, 2)])
def test_places_name_each_chunk_once(places: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match="do not name 2 chunks"):
        RagConfiguration(STUFF, 2, places=places)


def test_a_configuration_says_which_chunks_it_reads() -> None:
    found = RagConfiguration(STUFF, 2, places=(3, 0))
    assert str(found) == "stuff over 2 chunks, of those found 4, 1"
    assert found.ordered("abcd") == ["d", "a"]
