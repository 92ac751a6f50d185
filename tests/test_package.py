"""A wheel is built as publishers build it, and holds what a program without a checkout needs."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_code_pages_and_weights(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling builds the wheel")
    from hatchling.builders.wheel import WheelBuilder

    [wheel] = WheelBuilder(str(ROOT)).build(directory=str(tmp_path))
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [metadata] = [name for name in names if name.endswith("METADATA")]
        said = archive.read(metadata).decode()
    source = ROOT / "src"
    own = {
        str(path.relative_to(source))
        for path in (source / "kdn").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert own <= names
    assert "kdn/serve/console/static/console.js" in names
    assert "Provides-Extra: otel" in said
    assert not any(name.startswith(("tests", "docs")) for name in names)
