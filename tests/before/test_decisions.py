"""Every request is planned as before, takes as many tokens from where, and leaves the same blocks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.before import cases

HERE = Path(__file__).parent


def counted_names(found: list[dict[str, Any]]) -> Any:
    """With block 1, block 2, ... in place of names, which tell the processor's kernels, too: counted as
    they come, those of one request by their place."""
    lines = [
        line.split(" ", 1)
        for one in found
        for key in ("came", "went")
        for line in sorted(one[key], key=lambda line: line.split(" ", 1)[1])
    ]
    names = {name: f"block {number}" for number, (name, _) in enumerate(lines, 1)}
    by_place = [
        {key: sorted(_renamed(one[key], names)) for key in ("came", "went")} for one in found
    ]
    return [_renamed(one, names) | lists for one, lists in zip(found, by_place, strict=True)]


def _renamed(told: Any, names: dict[str, str]) -> Any:
    text = re.sub(r"\b[0-9a-f]{12}\b", lambda at: names.get(at[0], at[0]), json.dumps(told))
    return json.loads(text)


def test_every_decision_is_that_of_before(
    tmp_path: Path, before_tiny: Path, before_lora: Path
) -> None:
    home = tmp_path / "home"  # a codec's quality is written down there
    found = counted_names(cases.decisions(before_tiny, before_lora, home, tmp_path))
    expected = counted_names(json.loads((HERE / "decisions.json").read_text("utf-8")))
    for made, recorded in zip(found, expected, strict=True):
        assert made == recorded, recorded["situation"]
