"""How layers are read together."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from kdn.reuse.source import groups


def test_the_first_layer_comes_alone_and_later_ones_in_growing_groups() -> None:
    assert groups(30, 6) == [0, 1, 2, 4, 8, 14, 20, 26, 30]
    assert groups(5, 1) == [0, 1, 2, 3, 4, 5]


@given(num_layers=st.integers(1, 200), most=st.integers(1, 64))
def test_every_layer_is_in_one_group_and_no_group_is_too_large(num_layers: int, most: int) -> None:
    edges = groups(num_layers, most)
    sizes = [b - a for a, b in itertools.pairwise(edges)]
    assert edges[0] == 0
    assert edges[-1] == num_layers
    assert all(0 < size <= most for size in sizes)
