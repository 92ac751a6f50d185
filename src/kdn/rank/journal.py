"""Answers on disk as they come, so that a killed run goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path

from kdn.errors import BadInput
from kdn.machine.files import publish_file

__all__ = ["LabelAnswer", "LabelJournal"]

LabelAnswer = tuple[float, ...] | str
"""Log-probabilities of the choices; or why a row could not be asked about."""


class LabelJournal:
    """Answers in order of rows, a line each; a torn last line is not counted."""

    def __init__(self, path: Path, name: str, *, force: bool = False) -> None:
        """Go on with the journal of this job, or begin one.

        Raises BadInput when it holds answers to other questions, unless `force` discards them.
        """
        self._path = path
        self._name = name
        self.answers: list[LabelAnswer] = self._read(force=force)
        self._begin()

    def _read(self, *, force: bool) -> list[LabelAnswer]:
        try:
            lines = self._path.read_text("utf-8").split("\n")
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{self._path} is no journal of labels ({error}); remove it") from error
        whole = lines[1:-1]  # what follows the last line's end was being written
        if lines[0] == self._name:
            return [self._answer(line) for line in whole]
        if whole and not force:
            raise BadInput(
                f"{self._path} holds {len(whole)} answers to other questions: the rows, template,"
                " choices or model have changed; --force discards them, or choose another file"
            )
        return []

    def _begin(self) -> None:
        """Write what was read, whole lines only, and leave the file open for more."""
        lines = [self._name, *map(json.dumps, self.answers)]
        publish_file(self._path, ("\n".join(lines) + "\n").encode())
        self._file = self._path.open("a", encoding="utf-8")

    def add(self, answer: LabelAnswer) -> None:
        """One more answer; it outlives the process from here on."""
        self.answers.append(answer)
        self._file.write(json.dumps(answer) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Leave the file for a later run."""
        self._file.close()

    def remove(self) -> None:
        """The table is written: the journal has done its work."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def _answer(self, line: str) -> LabelAnswer:
        try:
            told = json.loads(line)  # of a hopeless choice the log-probability is -Infinity
            return told if isinstance(told, str) else tuple(map(float, told))
        except (ValueError, TypeError) as error:
            raise BadInput(
                f"{self._path} is damaged ({error}); remove it, and the rows are asked again"
            ) from error
