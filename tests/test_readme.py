"""What the README says to type works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ports import free_port

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


def readme_script(serve_port: int, node_port: int) -> str:
    """The README's commands in order, with ports that are free, and servers awaited and ended."""
    text = (ROOT / "README.md").read_text("utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    script = "\n".join(block for block in blocks if "make " not in block)
    changes = (
        (r"^kdn serve &$", f"kdn serve --port {serve_port} & wait_for {serve_port}"),
        (r"localhost:8000", f"localhost:{serve_port}"),
        (r"^(kdn node .*?)\s+#.*$", rf"\1 --port {node_port} & wait_for {node_port}"),
        (r"keeper:8100", f"127.0.0.1:{node_port}"),
        (r"^(kdn chat .*?)\s+#.*$", r"echo 'Say yes.' | \1"),
        (r'kdn ask "\.\.\."', 'kdn ask "How do I reset the controller?"'),
    )
    for was, then in changes:
        script, count = re.subn(was, then, script, flags=re.MULTILINE)
        assert count == 1, was
    wait = (
        'wait_for() { for _ in $(seq 300); do curl -sf "localhost:$1/health" >/dev/null && return 0;'
        " sleep 0.2; done; return 1; }"
    )
    return f"trap 'kill $(jobs -p)' EXIT\n{wait}\n{script}\n"


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_of_the_readme_runs(smollm2: Path, tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    pytest.importorskip("fastapi")
    if shutil.which("curl") is None:
        pytest.skip("no curl is installed")
    (tmp_path / "manuals").mkdir()
    for place in ("manuals/controller.txt", "manuals/controller.md", "manual.txt"):
        (tmp_path / place).write_text(MANUAL)
    (tmp_path / "tickets.csv").write_text("text\nThe lamp is broken again!\nThank you all.\n")
    kdn = tmp_path / "bin" / "kdn"
    kdn.parent.mkdir()
    kdn.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m kdn "$@"\n')
    kdn.chmod(0o755)
    own = {name: text for name, text in os.environ.items() if not name.startswith("KDN_")}
    done = subprocess.run(
        ["bash", "-e", "-m", "-c", readme_script(free_port(), free_port())],
        cwd=tmp_path,
        env=own
        | {
            "PATH": f"{kdn.parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "KDN_HOME": str(tmp_path / "home"),
            "PYTHONPATH": str(ROOT / "src"),
            "ADMIN": "the administrator's key",
            "PEER": "the peer's key",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert '"cached_tokens"' in done.stdout
    assert (tmp_path / "labels.parquet").stat().st_size > 0


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
