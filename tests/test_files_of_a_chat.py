"""How many files of the package one warm chat enters, from the server's route to the stored block."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MOST_FILES = 56
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Calls by file while a third question about one document is answered, in a process of its own."""
    command = [sys.executable, "-m", "tests.crossed", str(tmp_path_factory.mktemp("crossed"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["cached_tokens"] > 400, "the document's KV is reused"
    by_file: dict[str, int] = found["calls"]
    return by_file


def test_a_warm_chat_enters_few_files(calls: dict[str, int]) -> None:
    assert len(calls) <= MOST_FILES, sorted(calls)


def test_a_chat_goes_from_the_route_to_the_stored_block(calls: dict[str, int]) -> None:
    for file in ("serve/auth.py", "engine/loop.py", "reuse/prefix.py", "store/block/reader.py"):
        assert calls[file] > 0


def test_a_chat_that_is_not_blended_enters_no_file_of_blending(calls: dict[str, int]) -> None:
    assert [file for file in calls if file.startswith("reuse/blend/")] == []


def test_idle_time_has_no_say_in_a_chat_without_techniques(calls: dict[str, int]) -> None:
    assert "calibration/background.py" not in calls
