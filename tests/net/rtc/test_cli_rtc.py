"""`kdn net rtc`: one JSON object, or a table of 80 columns, or one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.net.rtc.clip import moving
from typer.testing import CliRunner, Result

from kdn.cli.program import app
from kdn.net.rtc.clips import read_clip, write_clip


def invoke(*args: str) -> Result:
    return CliRunner().invoke(app, ["net", "rtc", *args], env={"COLUMNS": "80"})


def test_eval_compares_controllers() -> None:
    done = invoke("eval", "--controllers", "gcc,oracle", "--links", "2", "--seconds", "5", "--json")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["rows"]
    assert [row["controller"] for row in rows] == ["gcc", "oracle"]
    table = invoke("eval", "--controllers", "gcc,copa", "--links", "1", "--seconds", "4")
    assert max(len(line) for line in table.stdout.splitlines()) <= 80
    assert "SSIM dB" in table.stdout


def test_wrong_names_are_refused_with_the_right_ones() -> None:
    wrong = invoke("eval", "--controllers", "tcp")
    assert wrong.exit_code == 2
    assert "there are ours" in " ".join(wrong.output.split())
    wrong = invoke("eval", "--codec", "vp9")
    assert wrong.exit_code == 2
    assert "masked, unmasked" in " ".join(wrong.output.split())
    wrong = invoke("train", "--reward", "joy")
    assert wrong.exit_code == 2
    assert "codec-aware" in wrong.output
    wrong = invoke("train", "--reward", "offline", "--safeguard")
    assert wrong.exit_code == 2
    assert "leave --safeguard out" in " ".join(wrong.output.split())


def test_a_call_leaves_a_strip_and_a_video_for_each(tmp_path: Path) -> None:
    film, out = tmp_path / "film.mp4", tmp_path / "out"
    write_clip(film, moving())
    args = ("call", str(film), "--controllers", "gcc,copa", "--seconds", "2.5", "--height", "96")
    done = invoke(*args, "--out", str(out), "--mbps", "0.5", "--json")
    assert done.exit_code == 0, done.output
    assert {row["controller"] for row in json.loads(done.stdout)["rows"]} == {"gcc", "copa"}
    assert {path.name for path in out.iterdir()} == {
        "strip.png",
        "rates.png",
        "side-by-side.mp4",
        "gcc.mp4",
        "copa.mp4",
    }


def test_codecs_stand_side_by_side_in_real_time(tmp_path: Path) -> None:
    """Three pictures (the original and two codecs) in two columns, 2.5 s at 25 a second."""
    film, out = tmp_path / "film.mp4", tmp_path / "out"
    write_clip(film, moving())
    args = ("call", str(film), "--controllers", "gcc", "--seconds", "2.5", "--height", "96")
    done = invoke(*args, "--codecs", "masked,h264+fec30", "--out", str(out), "--json")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["rows"]
    assert [row["controller"] for row in rows] == ["gcc masked", "gcc h264+fec30"]
    shown = read_clip(out / "side-by-side.mp4")
    assert shown.pictures[0].y.shape == (2 * (96 + 20), 2 * 128)
    assert len(shown.pictures) == 62
    assert (out / "gcc-h264+fec30.mp4").is_file()


def test_a_call_over_what_is_not_there_is_refused(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    write_clip(film, moving())
    wrong = invoke("call", str(film), "--over", "pigeons", "--out", str(tmp_path / "out"))
    assert wrong.exit_code == 2
    assert "simulated, udp, namespaces" in " ".join(wrong.output.split())
    wrong = invoke("call", str(film), "--codecs", "vp9", "--out", str(tmp_path / "out"))
    assert wrong.exit_code == 2
    assert "there are masked, unmasked, h264+fec30" in " ".join(wrong.output.split())
    args = ("--over", "udp", "--controllers", "gcc,oracle", "--out", str(tmp_path / "out"))
    wrong = invoke("call", str(film), *args)
    assert wrong.exit_code == 2
    assert "use --over simulated" in " ".join(wrong.output.split())


def test_a_file_that_is_no_video_is_one_sentence(tmp_path: Path) -> None:
    done = invoke("call", str(tmp_path / "absent.mp4"))
    assert done.exit_code == 2
    assert done.output.startswith("kdn: there is no video file")


@pytest.mark.slow
def test_a_policy_is_trained_and_used(tmp_path: Path) -> None:
    policies = tmp_path / "mine.npz"
    done = invoke("train", "--out", str(policies), "--steps", "100", "--json")
    assert done.exit_code == 0, done.output
    assert '"steps":4096,' in done.output, "what was taken, in whole parts"
    used = invoke(
        *("eval", "--controllers", "ours", "--links", "1", "--seconds", "4", "--json"),
        *("--policies", str(policies)),
    )
    assert used.exit_code == 0, used.output


def test_arguments_that_cannot_be_are_refused(tmp_path: Path) -> None:
    empty = invoke("eval", "--data", str(tmp_path), "--controllers", "gcc")
    assert empty.exit_code == 2
    assert "give the folder above them" in " ".join(empty.output.split())
    for wrong in (("--seconds", "2"), ("--links", "0"), ("--links", "many")):
        assert invoke("eval", "--controllers", "gcc", *wrong).exit_code == 2
