"""Speeds found from timed runs: exact ones are found again, negative ones never."""

from __future__ import annotations

import pytest

from kdn.cost import PairJct
from kdn.cost.fitted import TimedRun, fit_speed
from kdn.errors import BadInput

JCT = PairJct(fixed_s=0.05, token_s=1e-4, pair_s=1e-8)
TOKEN_BYTES = 1000


def timed(new: int, cached: int, output: int) -> TimedRun:
    """A machine that loads 1 GB/s after 10 ms, and decodes at 20 ms and 1 us a column."""
    load_s = 0.01 + cached * TOKEN_BYTES / 1e9 if cached else 0.0
    first_s = JCT.seconds(new, cached) + load_s
    steps = output - 1
    decode_s = steps * 0.02 + 1e-6 * steps * (new + cached + steps / 2)
    return TimedRun(new, cached, output, first_s, first_s + decode_s)


def test_what_a_machine_does_is_found_again() -> None:
    runs = [timed(n, 0, 10) for n in (100, 1000, 3000, 6000)]
    runs += [timed(50, n, 10) for n in (1000, 3000, 6000)]
    found = fit_speed(runs, TOKEN_BYTES)
    assert found.speed.prefill.seconds(2000, 500) == pytest.approx(JCT.seconds(2000, 500))
    assert found.load_latency_s == pytest.approx(0.01)
    assert found.bandwidth.value == pytest.approx(1e9)
    assert found.speed.decode(30, 2000).value == pytest.approx(29 * (0.02 + 1e-6 * 2014.5))


def test_noise_never_makes_a_time_negative() -> None:
    runs = [TimedRun(n, 0, 1, 1.0, 1.0) for n in (100, 2000, 5000)]
    runs += [TimedRun(50, n, 5, 0.5 - n / 20_000, 1.0) for n in (1000, 4000)]
    found = fit_speed(runs, TOKEN_BYTES)
    assert found.speed.prefill.seconds(5000, 0) == pytest.approx(1.0)
    assert found.speed.prefill.seconds(100, 0) == pytest.approx(1.0)
    assert found.speed.decode(10, 100).value >= 0


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(BadInput, match="2 cold, 0 warm and 2 decoding"):
        fit_speed([timed(10, 0, 5), timed(20, 0, 5)], TOKEN_BYTES)
