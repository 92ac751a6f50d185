"""The command: one JSON object, or one sentence and a code that is not 0."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdn.cli.program import app


def test_simulate_prints_one_json_object() -> None:
    done = CliRunner().invoke(app, ["net", "l4s", "simulate", "--seconds", "2.5", "--json"])
    assert done.exit_code == 0
    rows = json.loads(done.stdout)["rows"]
    assert [row["policy"] for row in rows] == ["all-L", "swift"]


def test_an_unknown_scenario_or_policy_is_one_sentence() -> None:
    for wrong in (["--scenario", "nowhere"], ["--policy", "best", "--seconds", "2"]):
        done = CliRunner().invoke(app, ["net", "l4s", "simulate", *wrong, "--json"])
        assert done.exit_code == 2
        assert "there are" in done.output


@pytest.mark.parametrize("seed", [-1, 2**32])
@pytest.mark.parametrize(
    "command", ["net l4s simulate", "net l4s eval", "net rtc train", "bench policies"]
)
def test_a_seed_that_no_generator_takes_is_refused(command: str, seed: int) -> None:
    done = CliRunner().invoke(app, [*command.split(), "--seed", str(seed)])
    assert done.exit_code == 2
    assert "Invalid value for '--seed'" in done.stderr


def test_an_unknown_policy_is_refused_before_anything_is_started() -> None:
    done = CliRunner().invoke(app, ["net", "l4s", "run", "--policy", "best"])
    assert done.exit_code == 2
    assert done.output.startswith("kdn: no policy 'best'; there are all-L,")


def test_the_oracle_is_refused_where_the_network_is_real() -> None:
    done = CliRunner().invoke(app, ["net", "l4s", "run", "--policy", "oracle"])
    assert done.exit_code == 2
    assert done.output.startswith("kdn: the oracle looks into copies of a simulated network")


def test_lists_are_named_and_an_unknown_one_is_refused() -> None:
    done = CliRunner().invoke(app, ["net", "l4s", "eval", "--list", "best", "--json"])
    assert done.exit_code == 2
    assert "published, transient, light" in done.output


def test_a_table_fits_eighty_columns_in_whole_words() -> None:
    done = CliRunner().invoke(
        app, ["net", "l4s", "simulate", "--seconds", "2.5"], env={"COLUMNS": "80"}
    )
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert max(len(line) for line in lines) <= 80
    (p99,) = [line for line in lines if "99th percentile of delay, ms" in line]
    assert len(p99.split("│")) == 5  # a label and two policies between four strokes


def test_a_recorded_link_is_played(tmp_path: Path) -> None:
    """Two packets of 1500 bytes every millisecond are 24 Mbit/s: a video of 15 passes whole."""
    link = tmp_path / "radio.txt"
    link.write_text("\n".join(f"{ms}\n{ms}" for ms in range(200)))
    args = ["net", "l4s", "simulate", "--scenario", "idle classic", "--seconds", "3"]
    args += ["--policy", "all-L", "--json"]
    done = CliRunner().invoke(app, [*args, "--link", str(link)])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)["rows"]
    assert row["scenario"].endswith("over radio.txt")
    assert 14 < row["others_mbps"] < 16


def test_a_link_that_lets_nothing_through_is_one_sentence(tmp_path: Path) -> None:
    link = tmp_path / "slow.txt"
    link.write_text("0 0.05\n1 0.05\n")
    args = ["net", "l4s", "simulate", "--seconds", "2", "--policy", "all-L", "--link", str(link)]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 2
    assert "no packet" in done.output


def test_a_link_with_a_wrong_line_is_refused(tmp_path: Path) -> None:
    link = tmp_path / "radio.txt"
    link.write_text("0 5\n1 nan\n")
    done = CliRunner().invoke(
        app, ["net", "l4s", "simulate", "--link", str(link), "--seconds", "2"]
    )
    assert done.exit_code == 2
    assert "line 2" in done.output
