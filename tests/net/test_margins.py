"""Margins settle where one packet in a hundred passes the forecast, whatever the forecast is."""

from __future__ import annotations

import numpy as np
import pytest

from kdn.net.l4s.margins import Margins
from kdn.net.world.records import ECT0, ECT1, MS


@pytest.mark.parametrize("forecast_ms", [2.0, 8.0])
def test_too_low_a_forecast_is_raised_until_one_in_a_hundred_passes(forecast_ms: float) -> None:
    random, margins, passed = np.random.default_rng(2), Margins(0.1, 1e9), 0
    for i in range(20_000):
        actual = random.exponential(4.0) * MS
        tail = margins.raised(ECT1, forecast_ms * MS)
        passed += actual > tail
        margins.note(ECT1, actual, tail, i)
    assert passed / 20_000 == pytest.approx(0.01, abs=0.004)


def test_a_margin_belongs_to_its_queue_and_fades() -> None:
    margins = Margins(1.0, 1.0)
    margins.note(ECT0, 50 * MS, 1 * MS, 0)
    assert margins.raised(ECT0, 1 * MS) > 2 * MS
    assert margins.raised(ECT1, 1 * MS) == pytest.approx(1 * MS)
    margins.note(ECT1, 0.0, 1 * MS, 10**10)  # ten seconds later
    assert margins.raised(ECT0, 1 * MS) == pytest.approx(1 * MS, rel=0.01)
