"""Quantiles are values that were measured, by the nearest rank."""

from __future__ import annotations

import pytest

from kdn.core import quantile


@pytest.mark.parametrize(("share", "value"), [(0.5, 5), (0.91, 10), (0.1, 1), (0, 1), (1, 10)])
def test_a_quantile_is_the_nearest_rank(share: float, value: int) -> None:
    assert quantile([10, 9, 8, 7, 6, 5, 4, 3, 2, 1], share) == value


def test_one_in_a_hundred_exceeds_the_99th_of_a_hundred() -> None:
    """`int(0.99 * 100)` is the place of the largest: three of seven rules that were here took it."""
    assert quantile(range(1, 101), 0.99) == 99
    assert quantile(range(1, 101), 0.07) == 7
    assert quantile([3.0], 0.99) == 3.0
