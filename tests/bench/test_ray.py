"""The rate that the benchmark of Ray tells, with sums by hand."""

from __future__ import annotations

import pytest

from kdn.bench.scale.ray import counted
from kdn.errors import EngineFailed


def test_a_rate_is_counted_once_every_engine_is_up() -> None:
    """Blocks of 8 rows: two engines are up after the second block, at 30 s; 16 rows came in 4 s more."""
    rows, seconds = [8, 16, 24, 32], [29.0, 30.0, 32.0, 34.0]
    assert counted(rows, seconds, first=2) == 4.0
    assert counted(rows, seconds, first=1) == pytest.approx(24 / 5)


def test_blocks_that_came_together_tell_no_rate() -> None:
    with pytest.raises(EngineFailed, match="2 blocks came together"):
        counted([8, 16], [1.0, 1.0], first=1)
    with pytest.raises(EngineFailed, match="2 blocks came together"):
        counted([8, 16], [1.0, 2.0], first=2)
