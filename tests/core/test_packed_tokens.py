"""Packed tokens: the same bytes as the chain hash sees, and the longest common prefix."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdn.core import chain_hash
from kdn.core.blocks import common_tokens, pack_tokens, unpack_tokens

few = st.lists(st.integers(0, 3), max_size=6)
ids = st.lists(st.integers(0, 2**32 - 1), max_size=20)


@given(ids)
def test_packing_is_undone_by_unpacking_and_hashes_like_a_chain(tokens: list[int]) -> None:
    packed = pack_tokens(tokens)
    assert unpack_tokens(packed) == tuple(tokens)
    assert hashlib.sha256(packed).hexdigest() == chain_hash(tokens)


@given(few, few)
def test_common_tokens_equals_counting_by_hand(left: list[int], right: list[int]) -> None:
    by_hand = 0
    while by_hand < min(len(left), len(right)) and left[by_hand] == right[by_hand]:
        by_hand += 1
    assert common_tokens(pack_tokens(left), pack_tokens(right)) == by_hand


def test_tokens_that_differ_in_a_high_byte_only_still_differ() -> None:
    assert common_tokens(pack_tokens([7, 1]), pack_tokens([7, 1 + 2**24])) == 1


@pytest.mark.parametrize("token", [-1, 2**32])
def test_an_impossible_token_is_refused(token: int) -> None:
    with pytest.raises(OverflowError):
        pack_tokens([token])
