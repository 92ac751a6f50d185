"""The time of a prompt: measured on a real tiny model, kept, never taken from a damaged file."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from kdn.calibration.times import JctMeter, jct_path, measure_jct, stored_jct
from kdn.clock import ManualClock, SystemClock
from kdn.core import JctModel
from kdn.cost import save_jct
from kdn.errors import BadInput
from kdn.model import LoadedModel
from kdn.model.attention import TorchAttention
from tests.engine.runs import load_tiny

FIT = JctModel(0.01, 1e-4, 1e-8, 1e-5, error=0.02, source="fit", prompt_s=1e-3)
GRID = ((16, 0), (64, 0), (32, 16), (16, 64))


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path], model_cache: Path) -> LoadedModel:
    folder = tiny_model("llama", max_position_embeddings=512)
    return load_tiny(folder, model_cache, "float32")


def test_a_fit_that_was_kept_stands_before_a_count(tiny: LoadedModel, tmp_path: Path) -> None:
    assert stored_jct(tiny.decoder, tmp_path).source == "flops"
    save_jct(FIT, jct_path(tiny.decoder, tmp_path))
    assert stored_jct(tiny.decoder, tmp_path) == FIT


@pytest.mark.parametrize(
    "damage",
    [
        {"pass_s": -1.0},
        {"token_s": 1e300},
        {"pair_s": None},
        {"cached_s": "soon"},
        {"prompt_s": 5000},
        {"pass_s": 0, "token_s": 0, "pair_s": 0, "cached_s": 0, "prompt_s": 0},
    ],
)
def test_a_damaged_fit_is_none(
    tiny: LoadedModel, tmp_path: Path, damage: dict[str, object]
) -> None:
    """Infinite microseconds would end the queue; idle time measures again."""
    path = jct_path(tiny.decoder, tmp_path)
    save_jct(FIT, path)
    path.write_bytes(msgspec.json.encode(msgspec.json.decode(path.read_bytes()) | damage))
    found = stored_jct(tiny.decoder, tmp_path)
    assert found.source == "flops"
    assert found.microseconds(4096, 4096) > 0


@pytest.mark.parametrize("kept", [0, 3, -5])
def test_a_fit_cut_short_is_none(tiny: LoadedModel, tmp_path: Path, kept: int) -> None:
    path = jct_path(tiny.decoder, tmp_path)
    save_jct(FIT, path)
    path.write_bytes(path.read_bytes()[:kept])
    assert stored_jct(tiny.decoder, tmp_path).source == "flops"


def test_real_prompts_give_a_fit_without_negative_parts(tiny: LoadedModel) -> None:
    found = measure_jct(tiny, TorchAttention(), SystemClock(), GRID, repeats=1)
    assert found.source == "fit"
    assert found.seconds(64) > 0
    assert min(found.pass_s, found.token_s, found.pair_s, found.cached_s, found.prompt_s) >= 0


def test_a_clock_that_stands_still_measures_nothing(tiny: LoadedModel) -> None:
    with closing(JctMeter(tiny, TorchAttention(), ManualClock(), GRID, ())) as meter:
        for _ in range(2):
            meter.round()
        with pytest.raises(BadInput, match="measure more"):
            meter.fit()


def test_points_beyond_the_context_are_left_out(tiny: LoadedModel) -> None:
    grid = (*GRID, (512, 0), (300, 300))
    with closing(JctMeter(tiny, TorchAttention(), ManualClock(), grid, ((8, 16, 4),))) as meter:
        assert meter.points == [*((new, cached, 1) for new, cached in GRID), (8, 16, 4)]


def test_a_count_of_operations_orders_prompts_by_their_work(tiny: LoadedModel) -> None:
    counted = stored_jct(tiny.decoder, Path("nowhere"))
    assert counted.seconds(100) < counted.seconds(200) < counted.seconds(200, 4000)
    assert replace(counted, error=None) == counted, "a count claims no error"
