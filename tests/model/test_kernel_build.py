"""The kernels' name says all that may change a bit: blocks of equal names hold equal bits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdn.model.kernels import NoKernel, load


def test_where_tile_registers_are_refused_the_same_library_has_another_name(tmp_path: Path) -> None:
    """Tiles sum pairs in another order than vectors."""
    try:
        kernels = load(tmp_path)
    except NoKernel as why:
        pytest.skip(str(why))
    if not kernels.has_amx:
        pytest.skip("this process may not use tile registers itself")
    done = subprocess.run(
        [sys.executable, "-m", "tests.model.without_tiles", str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    if "OSError" in done.stderr:
        pytest.skip("the system lets no program refuse calls to itself")
    assert done.returncode == 0, done.stderr
    assert kernels.name == done.stdout.removesuffix("-1") + "-2"
