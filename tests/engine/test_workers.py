"""An engine computes with workers of OpenMP, and has none of them while it waits for work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists a process's threads")
def test_an_idle_engine_has_given_up_its_workers(tiny_model: Callable[..., Path]) -> None:
    """Asleep they halved the speed of a second engine: three threads compute, and two of them go."""
    folder = tiny_model("llama", 0, intermediate_size=512)
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.workers", str(folder)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["at_work"] >= found["before"] + 2
    assert found["after"] <= found["before"]
