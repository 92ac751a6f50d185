"""Lines on disk as they come: of one run alone, and whole ones only."""

from __future__ import annotations

from pathlib import Path

from kdn.machine.journal import Journal, read_journal


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
