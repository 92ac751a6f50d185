"""An engine computes with workers of OpenMP, and has none of them while it waits for work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch


def told(program: str, folder: Path) -> dict[str, int]:
    """What a program says that runs a model in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", program, str(folder)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists a process's threads")
def test_an_idle_engine_has_given_up_its_workers(tiny_model: Callable[..., Path]) -> None:
    """Asleep they halved the speed of a second engine: three threads compute, and two of them go."""
    folder = tiny_model("llama", 0, intermediate_size=512)
    found = told("tests.engine.workers", folder)
    assert found["at_work"] >= found["before"] + 2
    assert found["after"] <= found["before"]


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere nobody says how many processors are free"
)
def test_an_engine_that_gives_way_takes_no_thread_from_another_one(
    tiny_model: Callable[..., Path],
) -> None:
    """torch's own call set the number of all threads that began later: one, for as long as they lived."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("the processor has no bfloat16, and the number of threads does not vary")
    assert told("tests.engine.threads", tiny_model("llama")) == {
        "beside a busy neighbour": 1,
        "a thread after beside a busy neighbour": 2,
        "alone": 2,
        "a thread after alone": 2,
    }
