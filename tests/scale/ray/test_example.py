"""The example of `ray.data.llm` against a real kdn server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.scale.served import served

pytest.importorskip("ray", reason="Ray is not installed (pip install 'kdn[ray]')")
pytestmark = [pytest.mark.alone, pytest.mark.slow, pytest.mark.timeout(600)]

EXAMPLE = Path(__file__).parents[3] / "examples" / "ray_http.py"


def test_each_row_comes_back_with_its_answer(
    tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    questions = [f"What is number {number}?" for number in range(3)]
    with served(tmp_path, tiny_model()) as [(url, _)]:
        done = subprocess.run(
            [sys.executable, str(EXAMPLE), url, *questions],
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert sorted(row["question"] for row in rows) == questions
    assert all(row["answer"] for row in rows)
