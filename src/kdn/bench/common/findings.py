"""What a long benchmark has found so far, kept in a file after every part of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from kdn.bench.common.measure import Samples
from kdn.bench.common.result import Result, Row, Scalar
from kdn.errors import BadInput, EngineFailed, KdnError
from kdn.machine.files import publish_file
from kdn.plot import Figure

__all__ = ["Findings", "Part", "go_on"]

Part = tuple[str, Callable[[], None]]
"""A name, and what adds its rows to the findings."""


class Findings(msgspec.Struct):
    """Grows part by part; `config` says what was asked for, so that answers to two questions never mix."""

    config: dict[str, Scalar]
    summary: dict[str, float | None]
    rows: list[Row] = []
    notes: list[str] = []
    samples: dict[int, Samples] = {}
    """By length of prompt: what figures are drawn from."""
    done: list[str] = []

    @classmethod
    def open(
        cls, file: Path | None, config: dict[str, Scalar], summary: dict[str, float | None]
    ) -> Findings:
        """What `file` holds of an earlier run, or nothing yet.

        Raises BadInput when that run was asked something else.
        """
        if file is None or not file.exists():
            return cls(config, summary)
        try:
            found = msgspec.json.decode(file.read_bytes(), type=cls)
        except (msgspec.DecodeError, RecursionError) as error:
            raise BadInput(f"{file} holds no findings ({error}): name another file") from error
        if found.config != config:
            raise BadInput(f"{file} is of a run with {found.config}, not {config}: name another")
        return found

    def save(self, file: Path | None) -> None:
        """Write everything to `file`, whole or not at all."""
        if file is None:
            return
        publish_file(file, msgspec.json.encode(self))

    def result(
        self, bench: str, model: str, notes: Sequence[str], figures: Sequence[Figure] = ()
    ) -> Result:
        """All that was found, `notes` first. Raises EngineFailed where nothing was measured."""
        if not self.rows:
            raise EngineFailed(f"nothing was measured: {'; '.join(self.notes)}")
        return Result(
            bench=bench,
            model=model,
            config=dict(self.config),
            rows=self.rows,
            summary=self.summary,
            notes=(*notes, *self.notes),
            figures=tuple(figures),
        )


def go_on(found: Findings, parts: Sequence[Part], file: Path | None) -> None:
    """Do what is not done yet, saving after each part. A part that fails is noted, and the rest is done."""
    for name, measure in parts:
        if name in found.done:
            continue
        failed = f"{name} was not measured: "
        found.notes = [note for note in found.notes if not note.startswith(failed)]
        try:
            measure()
        except (KdnError, OSError) as error:
            found.notes.append(failed + str(error)[:300])
            continue
        found.done.append(name)
        found.save(file)
