"""A library that the code of aea6709 wrote is opened, searched and answered from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from kdn.errors import MissingExtra
from tests.before import cases, seams

HERE = Path(__file__).parent


def test_the_same_parts_are_found_in_the_same_order(
    tmp_path: Path, before_tiny: Path, before_home: Path
) -> None:
    shutil.copytree(HERE / "library", tmp_path / "library")
    expected = json.loads((HERE / "library.json").read_text("utf-8"))
    with seams.opened(
        before_tiny, before_home, store=tmp_path / "store", library=tmp_path / "library"
    ) as k:
        try:
            found = cases.library_answers(k)
        except MissingExtra as missing:
            pytest.skip(str(missing))
        k.library.check()
    assert found == expected
