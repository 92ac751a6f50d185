"""Where prompts are cut, and what is no block."""

from __future__ import annotations

import pytest

from kdn.core import EXACT, Prompt, Role, Segment, chain_hash
from kdn.errors import BadInput
from kdn.store import Block, block_ids, cut_blocks
from tests.store.helpers import MODEL, SHAPE, block_id, make_block


def prompt_of(*lengths: int) -> Prompt:
    """Segments of these lengths with tokens 0, 1, 2 ..."""
    segments, start = [], 0
    for length in lengths:
        segments.append(Segment(Role.DOCUMENT, tuple(range(start, start + length))))
        start += length
    return Prompt(tuple(segments))


def test_borders_of_segments_end_blocks_and_cuts_count_from_the_segment() -> None:
    assert cut_blocks(prompt_of(10, 600, 0, 3), 613) == [
        (0, 10),
        (10, 266),
        (266, 522),
        (522, 610),
        (610, 613),
    ]


@pytest.mark.parametrize(
    ("upto", "cuts"),
    [(0, []), (5, [(0, 5)]), (10, [(0, 10)]), (267, [(0, 10), (10, 266), (266, 267)])],
)
def test_only_the_first_tokens_are_cut(upto: int, cuts: list[tuple[int, int]]) -> None:
    assert cut_blocks(prompt_of(10, 600), upto) == cuts


def test_ids_name_each_block_by_what_stands_before_it() -> None:
    prompt = prompt_of(10, 300)
    ids = list(block_ids(prompt, 310, fingerprint=MODEL, recipe=EXACT, salt="s"))
    assert [(one.start, one.num_tokens) for one in ids] == [(0, 10), (10, 256), (266, 44)]
    assert [one.after for one in ids] == [chain_hash(range(cut)) for cut in (0, 10, 266)]
    assert {one.salt for one in ids} == {"s"}


def test_runs_that_do_not_fit_the_shape_are_refused() -> None:
    good = make_block(block_id([1, 2]))
    for layers in (good.layers[:2], (*good.layers[:2], b"short")):
        with pytest.raises(BadInput):
            Block(good.id, SHAPE, layers)
    for tokens in ((), tuple(range(257))):
        with pytest.raises(BadInput):
            make_block(block_id(tokens))
