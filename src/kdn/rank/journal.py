"""Answers on disk as they come, so that a killed run goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path

from kdn.errors import BadInput
from kdn.machine.journal import Journal, read_journal

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
        self.answers: list[LabelAnswer] = self._read(name, force=force)
        self._journal = Journal(path, name, self.answers)

    def _read(self, name: str, *, force: bool) -> list[LabelAnswer]:
        try:
            of, lines = read_journal(self._path)
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{self._path} is no journal of labels ({error}); remove it") from error
        if of == name:
            return [self._answer(line) for line in lines]
        if lines and not force:
            raise BadInput(
                f"{self._path} holds {len(lines)} answers to other questions: the rows, template,"
                " choices or model have changed; --force discards them, or choose another file"
            )
        return []

    def add(self, answer: LabelAnswer) -> None:
        """One more answer; it outlives the process from here on."""
        self.answers.append(answer)
        self._journal.add(answer)

    def close(self) -> None:
        """Leave the file for a later run."""
        self._journal.close()

    def remove(self) -> None:
        """The table is written: the journal has done its work."""
        self._journal.remove()

    def _answer(self, line: str) -> LabelAnswer:
        try:
            told = json.loads(line)  # of a hopeless choice the log-probability is -Infinity
            return told if isinstance(told, str) else tuple(map(float, told))
        except (ValueError, TypeError) as error:
            raise BadInput(
                f"{self._path} is damaged ({error}); remove it, and the rows are asked again"
            ) from error
