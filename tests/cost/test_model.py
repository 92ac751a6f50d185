"""The study's numbers, the exact ratio, and what must hold whatever the prices."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdn.cost import (
    PairJct,
    Seconds,
    SizeBytes,
    Speed,
    Workload,
    advise,
    bill,
    break_even_per_hour,
    exact_ratio,
    keep_for,
    load_sheet,
    load_speed,
    published_ratio,
)
from kdn.cost.sweep import SWEEPS, sweep
from kdn.errors import BadInput

PAPER, V100 = load_sheet("paper-2025"), load_speed("llama-7b-v100")
IO2 = PAPER.tier("io2")
FREE = replace(IO2, storage=type(IO2.storage)(0), bandwidth=type(IO2.bandwidth)(1e30))
TEN_K = Workload(context_tokens=10_000, uses=5, prompt_tokens=0, output_tokens=1)


def test_the_studys_own_numbers() -> None:
    """Section 2 of arXiv 2503.14647: Llama-7B on a V100, 10,000 tokens on io2."""
    size = V100.size(10_000)
    assert size.value == pytest.approx(5.2e9, rel=0.01)
    assert IO2.storage.cost(size, Seconds(3600)).value == pytest.approx(8.8e-4, rel=0.02)
    assert PAPER.gpu.cost(V100.context(10_000, 0)).value == pytest.approx(5.8e-3, rel=0.01)
    assert IO2.bandwidth.time(size).value == pytest.approx(1.3, rel=0.01)


def test_the_studys_break_even_is_lower_than_its_rule_of_thumb() -> None:
    """It says once an hour; its own prices say 0.15, and 0.19 with the GPU waiting for the load."""
    hidden = break_even_per_hour(replace(TEN_K, overlap=1.0), V100, PAPER, IO2)
    assert hidden == pytest.approx(0.15, abs=0.005)
    assert break_even_per_hour(TEN_K, V100, PAPER, IO2) == pytest.approx(0.188, abs=0.002)


@pytest.mark.parametrize(("rest_s", "exact", "published"), [(1.0, 3.33, 6.6), (0.2, 4.5, 29.0)])
def test_the_published_ratio_has_no_bound_and_the_exact_one_has(
    rest_s: float, exact: float, published: float
) -> None:
    """Five uses, seven seconds of context: no more than five times cheaper can be true."""
    assert exact_ratio(5, Seconds(7), Seconds(rest_s)) == pytest.approx(exact, abs=0.01)
    assert published_ratio(5, Seconds(7), Seconds(rest_s)) == pytest.approx(published, abs=0.01)


def test_a_bill_by_hand() -> None:
    """1 ms a token, 2 ms a decoding step, 3.6 USD an hour: a millidollar a second."""
    speed = Speed(PairJct(0, 1e-3, 0), decode_token_s=2e-3, token_bytes=1000)
    sheet = replace(PAPER, gpu=type(PAPER.gpu)(3.6))
    tier = replace(IO2, bandwidth=type(IO2.bandwidth)(1e7), latency_s=0.1)
    work = Workload(context_tokens=2000, uses=3, prompt_tokens=100, output_tokens=51)
    found = bill(work, speed, sheet, tier)
    assert found.text.value == pytest.approx(3 * (2.0 + 0.1 + 0.1) * 1e-3)
    assert found.stored.first_prefill.value == pytest.approx(2e-3)
    assert found.stored.load.value == pytest.approx(2 * (0.1 + 0.2) * 1e-3)
    assert found.stored.decode.value == pytest.approx(3 * 0.1e-3)
    assert found.stored.storage.value == pytest.approx(0.00017 * 2e-3)
    assert found.text_delay == Seconds(2.1)
    assert found.stored_delay.value == pytest.approx(0.4)


def test_uses_that_find_the_kv_gone_pay_again() -> None:
    never = bill(replace(TEN_K, found_share=0.0), V100, PAPER, FREE)
    assert never.ratio == pytest.approx(1.0)
    assert never.stored.missed_prefills.value == pytest.approx(4 * 7 * 3 / 3600)


lengths = st.integers(1, 200_000)
works = st.builds(
    Workload,
    context_tokens=lengths,
    uses=st.integers(1, 1000),
    prompt_tokens=st.integers(1, 5000),
    output_tokens=st.integers(0, 5000),
    found_share=st.floats(0, 1),
    overlap=st.floats(0, 1),
)
speeds = st.builds(
    Speed,
    prefill=st.builds(PairJct, st.floats(0, 1), st.floats(1e-6, 1e-2), st.floats(0, 1e-6)),
    decode_token_s=st.floats(0, 0.1),
    decode_column_s=st.floats(0, 1e-5),
)
NEAR = 1e-9


@given(works, speeds)
def test_one_use_never_saves(work: Workload, speed: Speed) -> None:
    found = bill(replace(work, uses=1), speed, PAPER, IO2)
    assert found.saving <= NEAR * found.text.value
    assert found.ratio <= 1 + NEAR
    assert not advise(replace(work, uses=1), speed, PAPER)[0].worth_it


@given(works, speeds)
def test_never_more_than_n_times_cheaper(work: Workload, speed: Speed) -> None:
    found = bill(work, speed, PAPER, FREE)
    assert found.ratio <= work.uses * (1 + NEAR)
    assert found.exact_ratio <= work.uses * (1 + NEAR)
    assert found.exact_ratio <= found.published_ratio * (1 + NEAR)


@given(works, speeds, st.integers(1, 1000))
def test_more_uses_and_longer_contexts_pay_more_and_longer_answers_less(
    work: Workload, speed: Speed, more: int
) -> None:
    speed = replace(speed, decode_column_s=0.0)
    now = bill(work, speed, PAPER, IO2).exact_ratio
    often = bill(replace(work, uses=work.uses + more), speed, PAPER, IO2).exact_ratio
    longer = replace(work, context_tokens=work.context_tokens + more)
    talkative = replace(work, output_tokens=work.output_tokens + more)
    assert often >= now * (1 - 1e-6)
    assert bill(talkative, speed, PAPER, IO2).exact_ratio <= now * (1 + 1e-6)
    if not isinstance(speed.prefill, PairJct) or speed.prefill.fixed_s == 0:
        assert bill(longer, speed, PAPER, IO2).exact_ratio >= now * (1 - 1e-6)


def test_keep_until_storage_has_cost_a_use() -> None:
    kept = keep_for(replace(TEN_K, overlap=1.0), V100, PAPER, IO2)
    assert kept is not None
    assert IO2.storage.cost(SizeBytes(5.24288e9), kept).value == pytest.approx(7 * 3 / 3600)
    assert keep_for(TEN_K, V100, PAPER, FREE) is None


def test_verdicts_say_why() -> None:
    speed, sheet = load_speed("llama-8b-h100"), load_sheet("aws-h100")
    work = Workload(context_tokens=10_000, uses=5)
    reasons = {one.tier: one.reason for one in advise(work, speed, sheet)}
    assert reasons["memory"].startswith("saves")
    assert "needs" in reasons["io2"]
    assert reasons["gp3"] == "loading costs as much as computing"
    crowd = {one.tier: one.reason for one in advise(replace(work, contexts=1000), speed, sheet)}
    assert "do not fit the 256 GB of tier memory" in crowd["memory"]
    late = advise(work, speed, sheet, slo=Seconds(0.01))
    assert all("over the 0.01 s allowed" in one.reason or not one.worth_it for one in late)


@pytest.mark.parametrize("over", SWEEPS)
def test_every_quantity_can_be_swept(over: str) -> None:
    points = sweep(over, SWEEPS[over], TEN_K, V100, PAPER, ["io2"])
    assert [point.value for point in points] == SWEEPS[over]
    assert len({point.stored_usd for point in points}) > 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"context_tokens": -1},
        {"uses": 0},
        {"output_tokens": 10**12},
        {"found_share": 1.5},
        {"contexts": 0},
    ],
)
def test_impossible_workloads_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(BadInput):
        replace(TEN_K, **wrong)  # type: ignore[arg-type]  # one of the numbers is wrong, not its type


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_impossible_amounts_are_refused(value: float) -> None:
    with pytest.raises(BadInput, match="finite and not negative"):
        SizeBytes(value)


def test_units_do_not_mix() -> None:
    with pytest.raises(TypeError, match="do not add up"):
        SizeBytes(1) + Seconds(1)  # type: ignore[operator]  # that is the point
