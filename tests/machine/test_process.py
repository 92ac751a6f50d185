"""What other users see of this process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
