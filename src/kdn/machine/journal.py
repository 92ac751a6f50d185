"""Lines of JSON on disk as they come, so that a run that was killed goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from kdn.errors import BadInput
from kdn.machine.files import publish_file, refuse_special, system_errors
from kdn.machine.text import counted

__all__ = ["Journal", "RunJournal", "read_journal"]

_Line = TypeVar("_Line")


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
        # without a buffer: what a full disk refused would be written again by `close`, and refused again
        self._file = path.open("ab", buffering=0)

    def add(self, *lines: Any) -> None:
        """These lines more; they outlive the process from here on.

        Raises StoreError where they cannot be written, and then none of them is there.
        """
        rest = memoryview("".join(json.dumps(line) + "\n" for line in lines).encode())
        start = self._file.tell()
        with system_errors(f"writing {self._path}"):
            try:
                while rest:
                    rest = rest[self._file.write(rest) :]
            except BaseException:
                self._file.truncate(start)
                self._file.seek(start)
                raise

    def close(self) -> None:
        """Leave the file for a later run."""
        self._file.close()

    def remove(self) -> None:
        """The run is over: the journal has done its work."""
        self.close()
        self._path.unlink(missing_ok=True)


class RunJournal(Generic[_Line]):
    """The results of a run, a line each, which a later run of the same name goes on with."""

    def __init__(
        self, path: Path, name: str, read: Callable[[Any], _Line], *, force: bool = False
    ) -> None:
        """Go on with the journal of this run, or begin one.

        `read` makes a result of what a line says, or raises ValueError or TypeError.  Raises StoreError, and
        BadInput for a damaged line, or for results of another run, unless `force` discards those.
        """
        self.path = path
        self.lines: list[_Line] = self._earlier(name, read, force=force)
        """What is kept: of earlier runs first."""
        self._journal = Journal(path, name, self.lines)

    def _earlier(self, name: str, read: Callable[[Any], _Line], *, force: bool) -> list[_Line]:
        try:
            of, lines = read_journal(self.path)
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{self.path} is no journal of a run ({error}); remove it") from error
        if of != name:
            if lines and not force:
                raise BadInput(
                    f"{self.path} holds {counted(len(lines), 'result')} of another run: the rows, what is"
                    " asked of them, or the model have changed; --force discards them, or choose"
                    " another file"
                )
            return []
        try:
            return [read(json.loads(line)) for line in lines]
        except (ValueError, TypeError, RecursionError) as error:
            raise BadInput(
                f"{self.path} is damaged ({error}); remove it, and the rows are asked again"
            ) from error

    def add(self, *lines: _Line) -> None:
        """These results more; they outlive the process from here on. Raises StoreError."""
        self._journal.add(*lines)
        self.lines += lines

    def close(self) -> None:
        """Leave the file for a later run, if there is a result in it."""
        if self.lines:
            self._journal.close()
        else:
            self._journal.remove()

    def remove(self) -> None:
        """What was to be made of the results is there: the journal has done its work."""
        self._journal.remove()
