"""Runs `kdn` as its users do: as a program, in a home folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from kdn.cli import app

SOURCE = Path(__file__).parents[2] / "src"


@dataclass(frozen=True)
class Done:
    """How a program ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be one JSON object and nothing else."""
        return json.loads(self.out)


def environment(home: Path) -> dict[str, str]:
    """Nothing of ours but the home folder; everything else as it is."""
    others = {name: text for name, text in os.environ.items() if not name.startswith("KDN_")}
    return others | {"KDN_HOME": str(home), "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}


def start(home: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    """`kdn arguments...` under way, with pipes on all three streams."""
    return subprocess.Popen(
        [sys.executable, "-m", "kdn", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(home),
    )


def finish(program: subprocess.Popen[str], typed: str = "") -> Done:
    """Type the rest, and wait for the end."""
    out, err = program.communicate(typed, timeout=120)
    return Done(program.returncode, out, err)


def kdn(home: Path, *arguments: str | Path, typed: str | bytes = "") -> Done:
    """`kdn arguments...` from start to end, inside this process: torch is loaded but once."""
    done = CliRunner().invoke(
        app, [str(one) for one in arguments], input=typed, env={"KDN_HOME": str(home)}
    )
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Done(done.exit_code, done.stdout, done.stderr)
