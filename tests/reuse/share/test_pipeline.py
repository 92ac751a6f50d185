"""The paper's worked example, and what follows from the order of loads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdn.reuse.share.pipeline import LoadOrder, SharedArrival, times_to_first_token

A, B = SharedArrival(0, 3, 9), SharedArrival(2, 0, 2)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        # A: 1 (E) + 10 + 7 = 18; B begins at 18: 10 + 3, less its arrival at 2
        (LoadOrder.ALL_FIRST, [18, 29]),
        # A: 1 + 3 + 7 = 11; B begins at 11: 7 + 3 - 2
        (LoadOrder.REUSED_FIRST, [11, 19]),
        # A computes from 1 to 8, its 3 layers come by 4; B's 7 layers come from 4 to 11, it computes 8 to 11
        (LoadOrder.PIPELINED, [8, 9]),
    ],
)
def test_figure_13(order: LoadOrder, expected: list[float]) -> None:
    found = times_to_first_token([A, B], 10, order)
    assert found == expected
    assert sum(found) == {"all first": 47, "reused first": 30, "pipelined": 17}[order]


arrivals = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=5
).map(lambda some: [SharedArrival(at, min(a, b), max(a, b)) for at, a, b in sorted(some)])


@given(arrivals)
def test_no_order_beats_the_pipeline_and_none_beats_its_own_work(some: list[SharedArrival]) -> None:
    every, reused, piped = (times_to_first_token(some, 10, order) for order in LoadOrder)
    for one, a, b, c in zip(some, every, reused, piped, strict=True):
        assert a >= b >= c >= max(one.num_computed, 10 - one.num_computed)


def test_a_fast_link_leaves_the_work_of_the_processor() -> None:
    found = times_to_first_token([A], 10, LoadOrder.PIPELINED, load=0.0, states=0.0)
    assert found == [7]
