"""Repair pieces: any k of n give everything back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdn.errors import BadInput
from kdn.net.rtc.codec.repair import recover, repair


def slow_times(a: int, b: int) -> int:
    """The field's product bit by bit: the plain twin of the tables."""
    out = 0
    while b:
        out ^= a if b & 1 else 0
        a = (a << 1) ^ (0x11D if a & 0x80 else 0)
        b >>= 1
    return out


def test_one_repair_piece_by_hand() -> None:
    """Of pieces 1 and 1: 1/(2+0) + 1/(2+1); 2 times the first and 3 times the second is 1."""
    (value,) = repair(np.array([[1], [0]], np.uint8), 1)[0]
    assert slow_times(2, int(value)) == 1
    (other,) = repair(np.array([[0], [1]], np.uint8), 1)[0]
    assert slow_times(3, int(other)) == 1
    (both,) = repair(np.array([[1], [1]], np.uint8), 1)[0]
    assert both == value ^ other


@given(st.integers(1, 12), st.integers(0, 8), st.integers(1, 40), st.data())
def test_any_k_pieces_give_all_back(k: int, extra: int, length: int, data: st.DataObject) -> None:
    pieces = np.frombuffer(data.draw(st.binary(min_size=k * length, max_size=k * length)), np.uint8)
    pieces = pieces.reshape(k, length)
    every = np.concatenate((pieces, repair(pieces, extra)))
    chosen = data.draw(st.permutations(range(k + extra)))[:k]
    assert np.array_equal(recover({i: every[i] for i in chosen}, k), pieces)


def test_the_largest_code_recovers_from_repair_pieces_alone() -> None:
    pieces = np.random.default_rng(1).integers(0, 256, (128, 3)).astype(np.uint8)
    more = repair(pieces, 128)
    assert np.array_equal(recover({128 + i: more[i] for i in range(128)}, 128), pieces)


def test_too_few_pieces_or_too_many_are_one_sentence() -> None:
    pieces = np.zeros((200, 1), np.uint8)
    with pytest.raises(BadInput, match="200 pieces and 57 repair pieces"):
        repair(pieces, 57)
    with pytest.raises(BadInput, match="1 pieces of 2 arrived; 1 more are needed"):
        recover({0: np.zeros(1, np.uint8)}, 2)
