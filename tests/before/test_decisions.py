"""Every request is planned as before, takes as many tokens from where, and leaves the same blocks."""

from __future__ import annotations

import json
from pathlib import Path

from tests.before import cases

HERE = Path(__file__).parent


def test_every_decision_is_that_of_before(
    tmp_path: Path, before_tiny: Path, before_lora: Path
) -> None:
    home = tmp_path / "home"  # a codec's quality is written down there
    found = cases.decisions(before_tiny, before_lora, home, tmp_path)
    expected = json.loads((HERE / "decisions.json").read_text("utf-8"))
    for made, recorded in zip(found, expected, strict=True):
        assert made == recorded, recorded["situation"]
