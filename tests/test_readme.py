"""What the README says to type works."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MANUAL = """# The controller

To reset the controller, hold the red button for ten seconds. The lamp blinks twice.

# The lamp

The lamp is green while everything is well.
"""


@pytest.mark.model
@pytest.mark.slow
def test_the_python_example_runs(smollm2: Path, tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    [example] = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL
    )
    (tmp_path / "manuals").mkdir()
    (tmp_path / "manuals" / "controller.md").write_text(MANUAL)
    done = subprocess.run(
        [sys.executable, "-c", example],
        cwd=tmp_path,
        env=os.environ | {"KDN_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "tokens were not computed" in done.stdout.splitlines()[-1]


def test_the_commands_of_the_readme_exist() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    named = set(re.findall(r"(?:^|`)kdn ([a-z]+)", text, re.MULTILINE))
    program = "import typer.main, kdn.cli; print(*typer.main.get_command(kdn.cli.app).commands)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert named <= set(done.stdout.split())
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE)) <= targets
