"""What other users see of this process, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from signal import SIGINT, SIGTERM, Signals

import pytest

PROGRAM = """
import json, sys
from kdn.machine.process import hide_arguments
hidden = hide_arguments(sys.stdin.read().split())
listed = open('/proc/self/cmdline').read().split(chr(0))
print(json.dumps([hidden, listed[3:-1], sys.argv[1:]]))
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux")
def test_secrets_leave_the_process_list_and_nothing_else() -> None:
    arguments = ["--api-key", "hush", "--tenant=bob=k1", "--port", "7"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        input="hush k1",
        capture_output=True,
        text=True,
        check=True,
    )
    hidden, listed, kept = json.loads(done.stdout)
    assert hidden
    assert listed == ["--api-key", "****", "--tenant=bob=**", "--port", "7"]
    assert kept == arguments, "the program itself still has them"


STOPPED = """
import signal, sys
if "ignored" in sys.argv:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
from kdn.machine.process import Ending
ending, first, again = Ending(), *map(int, sys.argv[1:3])
class Torn:
    def __del__(self):
        raise AttributeError("half made")
try:
    signal.raise_signal(first)
    print("went on")
except KeyboardInterrupt:
    Torn()
    for _ in range(again):
        signal.raise_signal(first)
    print("cleaned up")
ending.leave_with(ending.code or 0)
signal.raise_signal(first)
print("too late")
"""


@pytest.mark.parametrize(("signal", "code"), [(SIGINT, 130), (SIGTERM, 143)])
@pytest.mark.parametrize("again", [0, 1, 2])
def test_a_stop_cleans_up_once_and_says_nothing_else(
    signal: Signals, code: int, again: int
) -> None:
    done = run(STOPPED, str(int(signal)), str(again))
    assert (done.returncode, done.stdout, done.stderr) == (code, "cleaned up\n", "")


def test_a_job_that_a_shell_started_behind_still_ignores_control_c() -> None:
    done = run(STOPPED, str(int(SIGINT)), "0", "ignored")
    assert (done.returncode, done.stdout) == (0, "went on\ntoo late\n")


def test_what_runs_at_the_end_runs_before_the_process_leaves() -> None:
    program = (
        "from kdn.machine.process import Ending; ending = Ending(); import atexit;"
        "atexit.register(print, 'last words'); ending.leave_with(7)"
    )
    done = run(program)
    assert (done.returncode, done.stdout) == (7, "last words\n")


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )
