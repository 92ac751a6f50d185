"""Lines of JSON on disk as they come, so that a run that was killed goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdn.machine.files import publish_file, refuse_special, system_errors

__all__ = ["Journal", "read_journal"]


def read_journal(path: Path) -> tuple[str, list[str]]:
    """The line that names the run, and the whole lines after it; a torn last line is not counted.

    Of a file that is missing an empty name.  Raises OSError, UnicodeDecodeError, and BadInput for a pipe,
    which would be waited for, a device or a folder.
    """
    refuse_special(path)
    try:
        head, *lines = path.read_text("utf-8").split("\n")
    except FileNotFoundError:
        return "", []
    return head, lines[:-1]


class Journal:
    """A file of lines under the name of a run, open for more.

    It replaces what was at the path: a second process on the same path writes a file of its own, so that
    lines of two runs are never mixed.
    """

    def __init__(self, path: Path, name: str, lines: Sequence[Any]) -> None:
        """Begin with these lines. Raises StoreError, and BadInput for a pipe, a device or a folder."""
        refuse_special(path)
        self._path = path
        publish_file(path, ("\n".join([name, *map(json.dumps, lines)]) + "\n").encode())
        self._file = path.open("a", encoding="utf-8")

    def add(self, line: Any) -> None:
        """One more; it outlives the process from here on. Raises StoreError."""
        with system_errors(f"writing {self._path}"):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Leave the file for a later run."""
        self._file.close()

    def remove(self) -> None:
        """The run is over: the journal has done its work."""
        self.close()
        self._path.unlink(missing_ok=True)
