"""Commands that measure a model: their records, where they are kept, and where they are shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.program import kdn

TEXT = "The lamp of the red house is lit at dusk, and nobody sees who lights it. " * 60


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", max_position_embeddings=4096)


def test_codecs_are_measured_and_shown_with_the_store(tmp_path: Path, tiny: Path) -> None:
    home, text = tmp_path / "home", tmp_path / "text.txt"
    text.write_text(TEXT)
    record = kdn(
        home, "store", "calibrate", "--model", tiny, "--data", text, "--dtype", "float32", "--json"
    ).json
    lossy = {"fp8", "int8", "int4", "entropy-1", "entropy-2", "entropy-3", "entropy-4"}
    assert lossy <= set(record["codecs"])
    assert record["codecs"]["int8"]["kl"] <= record["codecs"]["int4"]["kl"]
    assert record["codecs"]["int4"]["gain"] > record["codecs"]["int8"]["gain"] > 1
    shown = kdn(home, "store", "stat")
    assert "int8" in shown.out
    (kept,) = kdn(home, "store", "stat", "--json").json["quality"]
    assert kept["codecs"] == record["codecs"]


def test_a_fit_of_times_is_kept_and_shown(tmp_path: Path, tiny: Path) -> None:
    options = ("--model", tiny, "--repeats", "1", "--dtype", "float32")
    shape = kdn(tmp_path, "cost", "fit", *options, "--json").json
    assert shape["jct"]["source"] == "fit"
    assert list((tmp_path / "cost").glob("jct-*.json"))
    shown = kdn(tmp_path, "cost", "fit", *options)
    assert "to compute" in shown.out
    assert "median error over the measured grid" in shown.out


def test_the_doctor_leaves_its_findings_at_home(tmp_path: Path) -> None:
    shape = kdn(tmp_path, "doctor", "--json").json
    assert {"machine", "compute", "disk", "extras", "weights", "dtype"} <= set(shape)
    assert (tmp_path / "doctor.json").stat().st_mode & 0o777 == 0o600
    shown = kdn(tmp_path, "doctor").out
    for what in ("processor", "memory", "cpu dtype", "extras"):
        assert what in shown
