"""What is remembered of queries: rates, lengths, steps, and the work that is still ahead."""

from __future__ import annotations

import pytest

from kdn.core import JctModel, Usage
from kdn.rag.metis import Observed, RunningQueries, row_seconds

JCT = JctModel(pass_s=0.02, token_s=0.001, pair_s=0.0, cached_s=0.0)


def usage(completed: int, ttft_ms: float, total_ms: float) -> Usage:
    return Usage(100, completed, ttft_ms=ttft_ms, total_ms=total_ms)


def test_a_rate_needs_three_arrivals_and_fades_with_silence() -> None:
    seen = Observed(JCT)
    seen.arrived(0.0)
    seen.arrived(1.0)
    assert seen.per_s(1.0) == 0.0
    seen.arrived(2.0)
    assert seen.per_s(2.0) == pytest.approx(1.0)
    assert seen.per_s(20.0) == pytest.approx(0.1)


def test_answers_and_steps_come_from_what_was_measured() -> None:
    seen = Observed(JCT)
    assert seen.answer_tokens() == 48
    assert seen.step_s() == pytest.approx(0.021)
    for length in (11, 21, 31):
        one = usage(length, 100, 100 + (length - 1) * 30)
        seen.answered(one)
        seen.decoded([one])
    assert seen.answer_tokens() == 21
    assert seen.step_s() == pytest.approx(0.030)


def test_a_further_sequence_adds_what_the_longest_took_beyond_its_own_steps() -> None:
    """10 steps of 21 ms by itself; beside rows of 10 and 5 more tokens it took 240 ms: 2 ms a row, of
    which its 100 columns take half at 10 us each."""
    stage = [usage(11, 100, 340), usage(11, 100, 340), usage(6, 100, 240)]
    assert row_seconds(stage, 0.021, 0.0) == pytest.approx(0.002)
    assert row_seconds(stage, 0.021, 1e-5) == pytest.approx(0.001)
    seen = Observed(JCT)
    for _ in range(3):
        assert seen.row_s() is None
        seen.decoded(stage)
    assert seen.row_s() == pytest.approx(0.002)
    assert row_seconds(stage[:1], 0.021, 0.0) is None


def test_the_slowdown_is_a_median_of_three_or_more() -> None:
    seen = Observed(JCT)
    for seconds in (1.0, 2.0):
        seen.took(1.0, seconds, 500)
    assert seen.slowdown() == 1.0
    seen.took(1.0, 9.0, 800)
    assert seen.slowdown() == 2.0
    assert seen.mean_bytes() == 600


def test_a_time_of_nothing_teaches_nothing() -> None:
    seen = Observed(JCT)
    for _ in range(5):
        seen.took(0.0, 1.0, 0)
    seen.answered(usage(1, 5, 5))
    seen.decoded([usage(1, 5, 5), usage(1, 5, 5)])
    assert seen.row_s() is None
    assert seen.slowdown() == 1.0
    assert seen.step_s() == pytest.approx(0.021)


def test_running_queries_hold_their_last_steps_and_their_time() -> None:
    running = RunningQueries()
    assert running.ahead_s(0.0) == 0.0
    running.begin("a", 10.0, 5.0, 300)
    running.begin("b", 11.0, 1.0, 0)
    assert running.later_bytes() == 300
    assert running.ahead_s(11.0) == pytest.approx(4.0)
    assert running.ahead_s(99.0) == 0.0, "one that takes longer than foreseen is not negative work"
    running.end("a")
    running.end("a")
    assert (len(running), running.later_bytes()) == (1, 0)
