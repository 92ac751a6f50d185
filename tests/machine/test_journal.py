"""Lines on disk as they come: of one run alone, and whole ones only."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from kdn.errors import BadInput, NoSpace
from kdn.machine.journal import Journal, RunJournal, read_journal
from tests.full_disk import longest_file


def test_only_whole_lines_count(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    assert read_journal(path) == ("", [])
    Journal(path, "run", [1]).close()
    assert read_journal(path) == ("run", ["1"])
    path.write_text(path.read_text() + "[2, ")
    assert read_journal(path) == ("run", ["1"])


def test_lines_of_two_processes_are_never_mixed(tmp_path: Path) -> None:
    """Both go on after line 1, and both measure line 2: the later run's file is the one that stays."""
    path = tmp_path / "run.jsonl"
    first = Journal(path, "run", [1])
    second = Journal(path, "run", [1])
    first.add(2.25)
    second.add(2.5)
    first.add(3)
    first.close()
    second.close()
    assert read_journal(path) == ("run", ["1", "2.5"])


def test_a_pipe_a_device_or_a_folder_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    """Nobody writes to the pipe: to open it would hang, and to publish over it would remove it."""
    pipe, device = tmp_path / "pipe", tmp_path / "null"
    os.mkfifo(pipe)
    device.symlink_to("/dev/null")
    for path, why in ((pipe, "is a device, a pipe"), (device, "is a device"), (tmp_path, "folder")):
        with pytest.raises(BadInput, match=why):
            read_journal(path)
        with pytest.raises(BadInput, match=why):
            Journal(path, "run", [])
    assert pipe.is_fifo()
    assert device.is_symlink()


def test_of_lines_that_a_full_disk_cuts_off_none_is_there(tmp_path: Path) -> None:
    """`run` and `1` take 6 bytes; of 22, 33 and 44 the first would fit into 10."""
    path = tmp_path / "run.jsonl"
    journal = RunJournal(path, "run", int)
    journal.add(1)
    with longest_file(10):
        with pytest.raises(NoSpace, match=r"writing .*run\.jsonl: File too large; free some space"):
            journal.add(22, 33, 44)
        with pytest.raises(NoSpace):
            journal.add(55, 66, 77)
        journal.close()
    assert journal.lines == [1]
    assert read_journal(path) == ("run", ["1"])


def test_a_run_without_a_result_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    RunJournal(path, "run", int).close()
    assert not path.exists()
    begun = RunJournal(path, "run", int)
    begun.add(1)
    begun.close()
    with closing(RunJournal(path, "run", int)) as again:
        assert again.lines == [1]
