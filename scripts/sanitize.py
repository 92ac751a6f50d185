"""Run the tests of kdn's C under AddressSanitizer and UndefinedBehaviorSanitizer.

    python scripts/sanitize.py [more arguments for pytest]

`attention.c`, `floats.c`, `grouped.c`, `linear.c`, `linear4.c`, `linear8.c`, `norm.c`, `rans.c` and
`whole.c` are compiled with checks by a compiler that only this run sees; hypothesis draws shapes and damaged
words.
Needs gcc with its sanitizers, on Linux.
Exits 0 when nothing was reported, 1 when something was, 2 when the sanitizers are not here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = (
    "tests/model/test_attention.py",
    "tests/model/test_grouped.py",
    "tests/model/test_kernel_linear.py",
    "tests/store/codecs/test_coder.py",
)
FLAGS = "-g -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"


def runtime() -> str | None:
    """Libraries that must be in the process before Python is; None where there is no sanitizer.

    C++'s own is among them: the sanitizer looks for its exceptions when it begins, and torch throws some.
    """
    if sys.platform != "linux" or shutil.which("gcc") is None:
        return None
    found = [_library(name) for name in ("libasan.so", "libstdc++.so.6")]
    return " ".join(found) if all(Path(path).is_absolute() for path in found) else None


def _library(name: str) -> str:
    asked = ("gcc", f"-print-file-name={name}")
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def main() -> int:
    """Compile, run, and say how it ended."""
    library = runtime()
    if library is None:
        sys.stderr.write("gcc and its libasan are needed; install gcc\n")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        checking = Path(folder) / "cc"
        checking.write_text(f'#!/bin/sh\nexec gcc "$@" {FLAGS}\n')
        checking.chmod(0o755)
        environment = os.environ | {
            "CC": str(checking),
            "KDN_HOME": folder,
            "LD_PRELOAD": library,
            "ASAN_OPTIONS": f"detect_leaks=0:log_path={folder}/report",
            "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={folder}/report",
            "PYTHONMALLOC": "malloc",
            "OMP_NUM_THREADS": "2",
        }
        tests = [name for name in TESTS if (ROOT / name).exists()]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
        done = subprocess.run([*command, *sys.argv[1:]], cwd=ROOT, env=environment, check=False)
        for report in sorted(Path(folder).glob("report*")):
            sys.stderr.write(report.read_text(errors="replace"))
    return 1 if done.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
