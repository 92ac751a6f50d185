"""The time of a prompt: exact on what it was made from, honest about the rest, kept between runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdn.core import JctModel, KvShape
from kdn.cost import GRID, JctSample, count_jct, fit_jct, jct_file, load_jct, save_jct
from kdn.errors import BadInput

TRUE = JctModel(pass_s=0.02, token_s=0.001, pair_s=1e-7, cached_s=2e-6)


def test_seconds_by_hand() -> None:
    """10 new tokens after 100: 10 rows, 10 x 100 + 55 pairs, 100 brought in."""
    model = JctModel(pass_s=1.0, token_s=0.1, pair_s=0.001, cached_s=0.01)
    assert model.seconds(10, 100) == pytest.approx(1.0 + 1.0 + 1.055 + 1.0)
    assert model.share(10, 100) == pytest.approx(model.seconds(10, 100) - 1.0)
    assert model.microseconds(10, 100) == 4_055_000


def test_a_fit_finds_what_made_the_numbers() -> None:
    found = fit_jct([JctSample(new, cached, TRUE.seconds(new, cached)) for new, cached in GRID])
    assert found.source == "fit"
    assert found.error == pytest.approx(0, abs=1e-9)
    for new, cached in [(1, 0), (700, 300), (5000, 4000)]:
        assert found.seconds(new, cached) == pytest.approx(TRUE.seconds(new, cached), rel=1e-6)


@given(st.lists(st.floats(0.7, 1.4), min_size=len(GRID), max_size=len(GRID)))
def test_noise_never_makes_work_take_negative_time(noise: list[float]) -> None:
    samples = [
        JctSample(new, cached, TRUE.seconds(new, cached) * factor)
        for (new, cached), factor in zip(GRID, noise, strict=True)
    ]
    found = fit_jct(samples)
    assert min(found.pass_s, found.token_s, found.pair_s, found.cached_s) >= 0
    assert found.error is not None
    assert found.error < 0.5


def test_three_measurements_are_too_few() -> None:
    with pytest.raises(BadInput, match="measure more"):
        fit_jct([JctSample(n, 0, 1.0) for n in (1, 2, 3)])


def test_a_count_orders_jobs_before_anything_is_measured() -> None:
    """A million weights at a gigaflop a second: 2 ms a token."""
    kv = KvShape(num_layers=2, num_kv_heads=1, head_dim=8, dtype="float32")
    model = count_jct(10**6, 16, kv, flops_per_s=1e9)
    assert model.source == "flops"
    assert model.token_s == pytest.approx(0.002)
    assert model.pair_s == pytest.approx(4 * 16 * 2 / 1e9)
    assert model.seconds(10, 1000) < model.seconds(1000, 10)


def test_a_fit_is_kept_per_model_and_device(tmp_path: Path) -> None:
    path = jct_file(tmp_path, "abc" * 20, "cuda:0", 2)
    assert load_jct(path) is None
    save_jct(TRUE, path)
    assert load_jct(path) == TRUE
    assert jct_file(tmp_path, "abc" * 20, "cpu", 2) != path
    path.write_text("{torn")
    assert load_jct(path) is None
