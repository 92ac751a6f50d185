"""The command: one JSON object, or one sentence and a code that is not 0."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from kdn.cli.main import app


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


def test_an_unknown_policy_is_refused_before_anything_is_started() -> None:
    done = CliRunner().invoke(app, ["net", "l4s", "run", "--policy", "best"])
    assert done.exit_code == 2
    assert done.output.startswith("kdn: no policy 'best'; there are all-L,")


def test_lists_are_named_and_an_unknown_one_is_refused() -> None:
    done = CliRunner().invoke(app, ["net", "l4s", "eval", "--list", "best", "--json"])
    assert done.exit_code == 2
    assert "published, transient, light" in done.output
