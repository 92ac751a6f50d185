"""Answers on disk as they come, so that a killed run goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdn.machine.journal import RunJournal
from kdn.rank.rows import Row

__all__ = ["LabelAnswer", "LabelJournal", "name_run"]

LabelAnswer = tuple[float, ...] | str
"""Log-probabilities of the choices; or why a row could not be asked about."""


class LabelJournal(RunJournal[LabelAnswer]):
    """Answers in order of rows, a line each; a torn last line is not counted."""

    def __init__(self, path: Path, name: str, *, force: bool = False) -> None:
        """Go on with the journal of this job, or begin one.

        Raises StoreError, and BadInput when it holds answers to other questions, unless `force` discards
        them.
        """
        super().__init__(path, name, _answer, force=force)


def _answer(told: Any) -> LabelAnswer:
    # of a hopeless choice the log-probability is -Infinity
    return told if isinstance(told, str) else tuple(map(float, told))


def name_run(asked: Sequence[Any], rows: Sequence[Row]) -> str:
    """Names a run by the rows, and by what is asked of them: values that JSON has."""
    state = hashlib.sha256(json.dumps(asked).encode())
    for row in rows:
        state.update(json.dumps(row, sort_keys=True).encode())
    return state.hexdigest()
