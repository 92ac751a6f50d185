"""Half-made folders: those of dead processes go with the next one, those of living ones never."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from kdn.machine.scratch import locked_folder

PROGRAM = """
import sys
from pathlib import Path
from kdn.machine.scratch import locked_folder
with locked_folder(Path(sys.argv[1]), "half-") as folder:
    (folder / "file").write_text("x")
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_a_killed_process_leaves_a_folder_that_the_next_one_removes(tmp_path: Path) -> None:
    (tmp_path / "half-way.txt").write_text("a user's own", "utf-8")
    (tmp_path / "other-1").mkdir()
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        with locked_folder(tmp_path, "half-") as mine:
            assert mine.is_dir()
            assert (folder / "file").read_text("utf-8") == "x", "its process runs"
        process.kill()
        process.wait()
        assert folder.is_dir()
    with locked_folder(tmp_path, "half-"), locked_folder(tmp_path, "half-") as inner:
        assert not folder.exists()
        assert inner.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half-way.txt", "other-1"]


def test_a_folder_that_was_moved_away_stays(tmp_path: Path) -> None:
    with locked_folder(tmp_path, "half-") as folder:
        folder.rename(tmp_path / "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
