"""A vLLM that the connector was not tried with: one sentence, before anything of it is used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("version", ["0.31.2", "0.33.0", "0.320.0", "1.0.0"])
def test_an_untried_vllm_is_refused_as_the_connector_is_imported(
    tmp_path: Path, version: str
) -> None:
    """A package that says it is vLLM and has nothing else: what a version moved is not looked for."""
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text(f'__version__ = "{version}+cpu"')
    path = os.pathsep.join([str(tmp_path), str(ROOT / "src")])
    done = subprocess.run(
        [sys.executable, "-c", "import kdn.scale.vllm"],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"kdn.errors.BadConfig: vLLM {version} is installed, kdn's connector was tried with 0.32;"
        " install such a version or a newer kdn"
    )
