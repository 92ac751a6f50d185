"""Whole numbers through the range coder and back, and at what price."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdn.errors import BadInput
from kdn.net.rtc.codec.entropy import (
    LARGEST,
    NUM_SCALES,
    SCALES,
    BitReader,
    cost_bits,
    encode,
    frequencies,
)

HEADS = frequencies(np.array([0.7, 0.2, 0.05, 0.05]))


@given(
    st.lists(st.integers(0, 3), max_size=60),
    st.lists(st.tuples(st.integers(-32767, 32767), st.integers(0, NUM_SCALES - 1)), max_size=80),
)
def test_what_is_written_is_read(heads: list[int], pairs: list[tuple[int, int]]) -> None:
    numbers = np.array([p[0] for p in pairs], np.int32)
    scales = np.array([p[1] for p in pairs], np.uint8)
    data = encode(np.array(heads, np.int32), HEADS, numbers, scales)
    reader = BitReader(data)
    assert reader.heads(len(heads), HEADS).tolist() == heads
    assert reader.numbers(scales).tolist() == numbers.tolist()


def test_the_bytes_are_what_the_tables_promise() -> None:
    """Laplace numbers cost their entropy, log2(2 e scale) bits for a large scale, and two bytes."""
    random = np.random.default_rng(1)
    scale = NUM_SCALES - 8
    numbers = np.rint(random.laplace(0, SCALES[scale], 5000)).astype(np.int32)
    scales = np.full(5000, scale, np.uint8)
    bits = 8 * len(encode(np.zeros(0, np.int32), HEADS, numbers, scales))
    assert bits == pytest.approx(cost_bits(numbers, scales), rel=0.01)
    assert bits / 5000 == pytest.approx(np.log2(2 * np.e * SCALES[scale]), rel=0.05)


def test_zeros_under_the_narrowest_table_are_nearly_free() -> None:
    zeros, scales = np.zeros(4000, np.int32), np.zeros(4000, np.uint8)
    assert len(encode(np.zeros(0, np.int32), HEADS, zeros, scales)) < 20


def test_frequencies_are_whole_and_none_is_zero() -> None:
    table = frequencies(np.array([1.0, 0.0, 1e-9]))
    assert table[-1] == 4096
    assert (np.diff(table) > 0).all()
    assert LARGEST * 2 + 2 < 4096


def test_a_packet_that_is_cut_off_is_refused() -> None:
    numbers, scales = np.full(300, 20, np.int32), np.zeros(300, np.uint8)
    data = encode(np.zeros(0, np.int32), HEADS, numbers, scales)
    with pytest.raises(BadInput, match="cut off"):
        BitReader(data[: len(data) // 2]).numbers(scales)
    with pytest.raises(BadInput, match="cut off"):
        BitReader(b"ab")
