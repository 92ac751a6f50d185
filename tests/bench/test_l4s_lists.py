"""Lists of scenarios in a row each, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from kdn.bench.l4s.lists import cuts, list_rows, median_cut


def ran(scenario: str, policy: str, p99_ms: float, others_p99_ms: float = 10.0) -> dict[str, Any]:
    return {
        "part": "policy",
        "list": "frozen",
        "scenario": scenario,
        "weight": "1/16",
        "policy": policy,
        "p99_ms": p99_ms,
        "others_p99_ms": others_p99_ms,
        "goodput_mbps": 5.0,
        "others_mbps": 40.0,
    }


ROWS = [
    ran("one", "all-L", 10.0),
    ran("one", "swift", 5.0, 10.1),
    ran("two", "all-L", 20.0),
    ran("two", "swift", 22.0, 10.5),
    ran("three", "all-L", 4.0),
    ran("three", "swift", 3.0),
]


def test_cuts_are_against_all_l_in_the_same_scenario() -> None:
    """10 to 5 ms, 20 to 22, 4 to 3."""
    assert cuts(ROWS, "swift", "p99_ms", "frozen") == pytest.approx([0.5, -0.1, 0.25])
    assert median_cut(ROWS, "swift", "p99_ms") == pytest.approx(0.25)
    assert median_cut(ROWS, "oracle", "p99_ms") is None
    assert cuts(ROWS, "swift", "p99_ms", "frozen", "10%") == []


def test_a_row_tells_what_others_pay() -> None:
    """Others' P99 rises by 1 %, 5 % and nothing: one rise is over 2 %."""
    (row,) = list_rows([*ROWS, {"part": "real", "policy": "swift"}])
    assert (row["best"], row["worst"]) == pytest.approx((0.5, -0.1))
    assert row["P99 cut, geometric"] == pytest.approx(1 - (0.5 * 1.1 * 0.75) ** (1 / 3))
    assert row["others' P99 rise, median"] == pytest.approx(0.01)
    assert row["worst rise"] == pytest.approx(0.05)
    assert row["rises over 2 %"] == 1
    assert row["scenarios"] == 3
