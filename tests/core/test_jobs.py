"""Jobs and the time of a prompt, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdn.core import JctModel, Job

MODEL = JctModel(pass_s=0.5, token_s=0.01, pair_s=0.001, cached_s=0.002, prompt_s=0.1)


def job(**facts: object) -> Job:
    given: dict[str, object] = {
        "id": "a",
        "arrival_ns": 0,
        "num_tokens": 100,
        "num_cached": 30,
        "max_new_tokens": 1,
    }
    return Job(**(given | facts))  # type: ignore[arg-type]


def test_missing_tokens_are_those_that_must_be_computed() -> None:
    assert job().num_missing == 70
    assert job(family="f", num_shared=80).num_shared_missing == 50
    assert job(family="f", num_shared=20).num_shared_missing == 0
    assert job(num_shared=80).num_shared_missing == 0, "it leaves nothing to a family"


def test_seconds_by_hand() -> None:
    """4 new after 10: 0.5 + 4 x 0.01 + 4 x (10 + 2.5) x 0.001 + 10 x 0.002 = 0.61."""
    assert MODEL.seconds(4, 10) == pytest.approx(0.61)
    assert MODEL.microseconds(4, 10) == 610_000
    assert MODEL.share(4, 10) == pytest.approx(0.11)


def test_a_prompt_beside_another_pays_for_itself_but_not_for_the_loading() -> None:
    """0.1 + 0.11 - 10 x 0.002."""
    assert MODEL.beside(4, 10) == pytest.approx(0.19)


@given(st.integers(1, 4000), st.integers(0, 4000))
def test_computing_two_parts_in_order_is_the_arithmetic_of_the_whole(new: int, cached: int) -> None:
    """Pairs add up: n tokens after c, then one more after c + n."""
    work = JctModel(0, 0.01, 0.001, 0)
    parts = work.share(new, cached) + work.share(1, cached + new)
    assert parts == pytest.approx(work.share(new + 1, cached))


@given(st.integers(1, 4000), st.integers(0, 4000), st.integers(1, 500))
def test_more_to_compute_takes_longer_and_more_reuse_of_a_prompt_never_does(
    new: int, cached: int, more: int
) -> None:
    """With loading cheaper than computing, as in the model above."""
    assert MODEL.seconds(new + more, cached) > MODEL.seconds(new, cached)
    assert MODEL.seconds(new, cached + more) < MODEL.seconds(new + more, cached)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_missing_tokens_are_never_negative(total: int, cached: int, shared: int) -> None:
    cached = min(cached, total)
    one = job(num_tokens=total, num_cached=cached, family="f", num_shared=min(shared, total))
    assert 0 <= one.num_shared_missing <= one.num_missing


def test_a_fit_says_so_and_a_count_has_no_error() -> None:
    """Schedulers trust a fit and refuse to estimate loads from a count."""
    counted = JctModel(0, 1, 0, 0)
    assert (counted.source, counted.error) == ("flops", None)
    assert JctModel(0, 1, 0, 0, error=0.04, source="fit").source == "fit"
