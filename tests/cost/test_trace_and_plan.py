"""A trace in dollars, and the fleet for it, with numbers for one's fingers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kdn.core import Served
from kdn.cost import (
    PairJct,
    Seconds,
    SizeBytes,
    Speed,
    block_saving,
    compute_ledger,
    load_sheet,
    plan_fleet,
    price_trace,
)
from kdn.cost.plan import jobs_of, simulated_p95, waiting_p95
from kdn.cost.units import PerByte
from kdn.errors import BadInput

SHEET = replace(load_sheet("paper-2025"), gpu=type(load_sheet("paper-2025").gpu)(3.6))
"""A millidollar a second."""
TIER = replace(SHEET.tier("io2"), bandwidth=type(SHEET.tier("io2").bandwidth)(1e6))
SPEED = Speed(PairJct(0, 1e-3, 0), decode_token_s=0.0, token_bytes=1000)


def served(at_s: float, tokens: int, hit: int = 0) -> Served:
    return Served(at_s, tokens, 1, hit, hit * 1000, (tokens - hit) * 1000, tokens * 1000, 1, 0, 1)


def test_a_trace_in_dollars() -> None:
    found = price_trace([served(0, 1000), served(3600, 2000, 1000)], SPEED, SHEET, TIER)
    assert found.prefill.value == pytest.approx((1 + 1) * 1e-3)
    assert found.load.value == pytest.approx(1e-3)  # a megabyte at a megabyte a second
    assert found.storage.value == pytest.approx(0.00017 * 1e-3)  # a megabyte for an hour
    assert found.hit_rate == pytest.approx(1 / 3)
    assert found.mean_delay.value == pytest.approx((1 + 2) / 2)
    rented = price_trace(
        [served(0, 1000), served(3600, 1000)], SPEED, SHEET, TIER, rented=SizeBytes(1e9)
    )
    assert rented.storage.value == pytest.approx(0.00017)


def test_without_a_store_all_is_computed_and_no_store_is_paid() -> None:
    """Three seconds of prefill in place of two and a load."""
    requests = [served(0, 1000), served(3600, 2000, 1000)]
    found = price_trace(requests, SPEED, SHEET, None, rented=SizeBytes(1e9))
    assert found.prefill.value == pytest.approx(3e-3)
    assert (found.load.value, found.storage.value, found.fees.value) == (0, 0, 0)
    assert found.hit_rate == 0


def test_an_empty_trace_has_no_price() -> None:
    with pytest.raises(BadInput, match="no requests"):
        price_trace([], SPEED, SHEET, TIER)


def test_one_gpu_queues_and_two_do_not() -> None:
    """Jobs of a second, two at a time every two seconds."""
    requests = [served(2.0 * (n // 2), 1000) for n in range(20)]
    jobs = jobs_of(requests, SPEED, None)
    assert simulated_p95(jobs, 1) == Seconds(2.0)
    assert simulated_p95(jobs, 2) == Seconds(1.0)
    assert plan_gpus(requests, slo=2.0) == 1
    assert plan_gpus(requests, slo=1.5) == 2
    assert plan_gpus(requests, slo=0.5) is None


def plan_gpus(requests: list[Served], slo: float, traffic: float = 1.0) -> int | None:
    found = plan_fleet(requests, SPEED, SHEET, None, SizeBytes(0), Seconds(slo), traffic)
    return None if found is None else found.gpus


def test_large_fleets_need_less_than_their_share() -> None:
    requests = [served(float(n), 800) for n in range(500)]
    one, ten, many = (plan_gpus(requests, 2.0, traffic) for traffic in (1.0, 10.0, 1000.0))
    assert one is not None
    assert ten is not None
    assert many is not None
    assert 8 < ten <= 10 * one
    assert 800 < many <= 100 * ten


def test_on_paper_a_queue_that_only_grows_has_no_delay() -> None:
    jobs = jobs_of([served(float(n), 2000) for n in range(50)], SPEED, None)
    assert waiting_p95(jobs, 2) is None
    assert waiting_p95(jobs, 50) == Seconds(2.0)


def test_a_fleet_is_bounded_before_it_is_tried() -> None:
    """Jobs of a second that all come at one moment are 3e9 busy GPUs on average, of a nanosecond."""
    burst = [served(0, 1000) for _ in range(3)]
    assert plan_gpus(burst, 1.0) == 3
    assert plan_gpus(burst, 2.5) == 2
    assert plan_gpus(burst, 1.0, 10.0) is None
    assert plan_gpus([served(float(n), 800) for n in range(50)], 2.0, 1e9) is None


def test_hits_make_the_fleet_smaller() -> None:
    cold = [served(float(n), 3000) for n in range(100)]
    warm = [served(float(n), 3000, 2900) for n in range(100)]
    fast = replace(TIER, bandwidth=type(TIER.bandwidth)(1e9))
    without = plan_fleet(cold, SPEED, SHEET, None, SizeBytes(0), Seconds(5.0))
    with_it = plan_fleet(warm, SPEED, SHEET, fast, SizeBytes(1e9), Seconds(5.0))
    assert without is not None
    assert with_it is not None
    assert with_it.gpus == 1 < without.gpus
    assert with_it.hit_rate == pytest.approx(29 / 30)


@pytest.mark.parametrize("traffic", [0.0, -1.0, float("inf")])
def test_impossible_traffic_is_refused(traffic: float) -> None:
    with pytest.raises(BadInput, match="above 0"):
        plan_gpus([served(0, 1), served(1, 1)], 1.0, traffic)


def test_the_books_of_a_store() -> None:
    """Two blocks of 500 tokens, one used twice, one never, kept for an hour."""
    assert block_saving(SPEED, SHEET, 0, 501).value == pytest.approx(0.5e-3)
    blocks = [(0, 501, 1_000_000, 3600.0, 2), (501, 501, 1_000_000, 3600.0, 0)]
    sheet = replace(SHEET, tiers={"io2": TIER})
    ledger = compute_ledger({"memory": [], "io2": blocks}, SPEED, sheet)
    assert ledger.saved.value == pytest.approx(2 * 0.5e-3)
    assert ledger.spent.value == pytest.approx(2 * 0.00017e-3 + 2 * 1e-3)
    far = replace(TIER, read=PerByte.gb(0.09), latency_s=0.5)
    ledger = compute_ledger({"io2": blocks}, SPEED, replace(SHEET, tiers={"io2": far}))
    egress_and_wait = 0.09e-3 + 0.5e-3  # dollars a use
    assert ledger.spent.value == pytest.approx(2 * 0.00017e-3 + 2 * (1e-3 + egress_and_wait))
    with pytest.raises(BadInput, match="no price for tier 'tape'"):
        compute_ledger({"tape": blocks}, SPEED, sheet)
