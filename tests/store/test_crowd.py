"""Two writers and a reader on one folder: no wrong byte, no damage, and the books add up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from kdn.clock import SystemClock
from kdn.store import DiskTier, Store
from kdn.trace import NoTrace
from tests.store.crowd import AT_LEAST, CAP_BYTES

ROOT = Path(__file__).parents[2]


def run_crowd(folder: Path, seconds: float) -> tuple[int, int]:
    """Blocks written and blocks read. Asserts that nobody met damage and the books add up."""
    paths = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    code = [sys.executable, "-m", "tests.store.crowd"]
    crowd = [
        subprocess.Popen(
            [*code, role, str(folder), str(seed), str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        for seed, role in enumerate(("write", "write", "read"))
    ]
    for process in crowd:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in crowd:
        assert process.stdin is not None
        process.stdin.write("begin\n")
        process.stdin.flush()
    told = [process.communicate(timeout=seconds + 120)[0].split() for process in crowd]
    assert [process.returncode for process in crowd] == [0, 0, 0]
    assert [corrupt for _, corrupt in told] == ["0", "0", "0"]
    with Store([DiskTier(folder, CAP_BYTES, SystemClock(), NoTrace())]) as store:
        store.check()
        assert store.verify().corrupt == ()
    return int(told[0][0]) + int(told[1][0]), int(told[2][0])


def test_two_writers_and_a_reader(tmp_path: Path) -> None:
    written, read = run_crowd(tmp_path / "kv", 3)
    assert written >= 2 * AT_LEAST
    assert read >= AT_LEAST
