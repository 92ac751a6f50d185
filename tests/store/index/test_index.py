"""The exact index against a dull twin that tries every block at every step."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kdn.core import EXACT, BlockId, Cause, Fingerprint, Recipe, chain_hash
from kdn.store.index.index import Entry, Family, Index
from tests.store.helpers import MODEL, block_id

FAMILY = Family(MODEL, EXACT, "")
BLENDED = Recipe((Cause.BLEND,), "r=0.15")
tokens = st.lists(st.integers(0, 1), min_size=1, max_size=4)
blocks = st.builds(
    block_id,
    tokens,
    st.lists(st.integers(0, 1), max_size=4),
    recipe=st.sampled_from([EXACT, BLENDED]),
    salt=st.sampled_from(["", "x"]),
)


def linear_match(known: list[BlockId], family: Family, wanted: list[int]) -> int:
    """How far one comes when every known block is tried at every position already covered."""
    reach, position = 0, 0
    while position <= min(reach, len(wanted) - 1):
        behind = chain_hash(wanted[:position])
        for block in known:
            same = (block.fingerprint, block.recipe, block.salt) == family
            if same and block.after == behind:
                reach = max(reach, position + common(block.token_ids, wanted[position:]))
        position += 1
    return reach


def lengths(index: Index, wanted: list[int]) -> list[int]:
    return [piece.num_tokens for piece in index.match([FAMILY], wanted)]


def common(left: tuple[int, ...], right: list[int]) -> int:
    for count, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return count
    return min(len(left), len(right))


@settings(max_examples=150)
@given(st.lists(blocks, max_size=25), st.lists(st.integers(0, 1), max_size=10))
def test_match_equals_the_linear_scan(known: list[BlockId], wanted: list[int]) -> None:
    index = Index()
    index.add(Entry.of(block) for block in known)
    index.check()
    for family in (FAMILY, Family(MODEL, BLENDED, ""), Family(MODEL, EXACT, "x")):
        pieces = index.match([family], wanted)
        assert sum(piece.num_tokens for piece in pieces) == linear_match(known, family, wanted)
        position = 0
        for entry, num_tokens in pieces:
            assert entry.start == position
            assert entry.block_id().token_ids[:num_tokens] == tuple(
                wanted[position : position + num_tokens]
            )
            position += num_tokens


def test_cuts_of_the_asker_need_not_be_those_of_the_writer() -> None:
    index = Index()
    whole = list(range(10))
    index.add([Entry.of(block_id(whole[:7])), Entry.of(block_id(whole[5:], whole[:5]))])
    pieces = index.match([FAMILY], [*whole[:5], *whole[5:]])
    assert [(piece.entry.start, piece.num_tokens) for piece in pieces] == [(0, 5), (5, 5)]


def test_a_block_is_left_early_only_when_that_leads_further() -> None:
    index = Index()
    a, b = block_id([1, 2, 3, 4, 5, 9]), block_id([4, 5, 6, 7, 8], [1, 2, 3])
    index.add([Entry.of(a), Entry.of(b)])
    assert lengths(index, [1, 2, 3, 4, 5, 6, 7, 8]) == [3, 5]
    assert lengths(index, [1, 2, 3, 4, 5, 9]) == [6]
    index.add([Entry.of(block_id([9, 6, 7, 8, 0], [1, 2, 3, 4, 5]))])
    assert lengths(index, [1, 2, 3, 4, 5, 9, 6, 7, 8, 0]) == [5, 5]


def test_as_few_blocks_as_possible_are_used() -> None:
    index = Index()
    whole = list(range(12))
    for start, stop in ((0, 4), (2, 5), (4, 8), (5, 9), (8, 12)):
        index.add([Entry.of(block_id(whole[start:stop], whole[:start]))])
    assert lengths(index, whole) == [4, 4, 4]


def test_a_partly_used_block_is_followed_by_what_stands_behind_that_part() -> None:
    index = Index()
    index.add([Entry.of(block_id([1, 2, 3, 4])), Entry.of(block_id([9, 9], [1, 2]))])
    pieces = index.match([FAMILY], [1, 2, 9, 9, 5])
    assert [(piece.entry.start, piece.num_tokens) for piece in pieces] == [(0, 2), (2, 2)]


def test_another_model_is_another_family() -> None:
    index = Index()
    index.add([Entry.of(block_id([1, 2]))])
    assert index.match([Family(Fingerprint("model-b"), EXACT, "")], [1, 2]) == []


def test_content_is_found_wherever_it_was_computed() -> None:
    index = Index()
    here, there = block_id([1, 2]), block_id([1, 2], [7], recipe=BLENDED)
    index.add(Entry.of(block) for block in (here, there, block_id([1, 2], salt="x")))
    found = index.find_content(here.content_id)
    assert [entry.block_id() for entry in found] == [here, there]
    assert index.remove(here.key)
    assert [entry.block_id() for entry in index.find_content(here.content_id)] == [there]


def test_ten_thousand_documents_behind_one_prelude_are_told_apart() -> None:
    index = Index()
    prelude = [7] * 5
    documents = [[number, number // 3, 1] for number in range(10_000)]
    index.add(Entry.of(block_id(document, prelude)) for document in documents)
    index.add([Entry.of(block_id(prelude))])
    pieces = index.match([FAMILY], [*prelude, 5000, 1666, 2])
    assert [piece.num_tokens for piece in pieces] == [5, 2]


def test_a_family_goes_with_its_last_entry() -> None:
    """A client may name a new salt for each session."""
    index = Index()
    entries = [Entry.of(block_id([1, 2], salt=f"session-{number}")) for number in range(1_000)]
    index.add(entries)
    index.check()
    for entry in entries:
        assert index.remove(entry.key)
    index.check()
    assert (len(index), len(index._shelves)) == (0, 0)


class IndexMachine(RuleBasedStateMachine):
    """Adds and removes at random; the books must add up after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.index = Index()
        self.twin: dict[str, BlockId] = {}

    @rule(block=blocks)
    def add(self, block: BlockId) -> None:
        self.index.add([Entry.of(block)])
        self.twin[block.key] = block

    @rule(block=blocks)
    def remove(self, block: BlockId) -> None:
        assert self.index.remove(block.key) == (self.twin.pop(block.key, None) is not None)

    @rule(wanted=tokens)
    def match(self, wanted: list[int]) -> None:
        found = sum(piece.num_tokens for piece in self.index.match([FAMILY], wanted))
        assert found == linear_match(list(self.twin.values()), FAMILY, wanted)

    @invariant()
    def books_add_up(self) -> None:
        self.index.check()
        assert {entry.key for entry in self.index} == set(self.twin)


IndexMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=20)
TestIndexMachine = IndexMachine.TestCase


def test_check_notices_a_book_that_does_not_add_up() -> None:
    index = Index()
    index.add([Entry.of(block_id([1, 2]))])
    index._contents.clear()
    with pytest.raises(AssertionError, match="contents"):
        index.check()
