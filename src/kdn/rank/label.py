"""Labelling a table: rows to answers, on disk as they come, so that a killed run goes on where it was.

rows  ->  questions  ->  answers  ->  journal (a line a row)  ->  calibration  ->  table
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from kdn.core import Prompt
from kdn.errors import BadInput, MissingExtra
from kdn.rank.calibrate import fit_temperature
from kdn.rank.choices import Choice, share_out
from kdn.rank.judge import Judge
from kdn.rank.questions import Conversation, RowTemplate

__all__ = [
    "LabelJob",
    "LabelJournal",
    "LabelTable",
    "Labelled",
    "label_rows",
    "make_table",
    "read_rows",
    "write_table",
]

Row = Mapping[str, str]
Ask = Callable[[Conversation], Prompt]


@dataclass(frozen=True)
class LabelJob:
    """What is asked of every row. Two runs with equal jobs and rows give equal journals."""

    model: str
    """The fingerprint, so that another model's answers are never taken over."""
    template: str
    choices: tuple[Choice, ...]
    known: str | None = None
    """The column that holds the right label where it is known."""
    threshold: float = 0.0
    """Below this probability a row gets no label."""

    def name(self, rows: Sequence[Row]) -> str:
        """Names the questions; what is made of the answers afterwards is not part of it."""
        said = [self.model, self.template, [[c.name, *c.tokens] for c in self.choices]]
        state = hashlib.sha256(json.dumps(said).encode())
        for row in rows:
            state.update(json.dumps(row, sort_keys=True).encode())
        return state.hexdigest()


@dataclass(frozen=True)
class Labelled:
    """One row's answer. `label` is None where no choice reached the threshold."""

    probabilities: tuple[float, ...]
    label: str | None


@dataclass(frozen=True)
class LabelTable:
    """All rows labelled, and how well the labels that were known were met."""

    labelled: tuple[Labelled, ...]
    temperature: float
    num_known: int
    accuracy: float | None
    """Among rows of known label that got one; None without such rows."""

    @property
    def num_abstained(self) -> int:
        return sum(one.label is None for one in self.labelled)


class LabelJournal:
    """Verdicts on disk, a line each, in order of rows; a torn last line is not counted."""

    def __init__(self, path: Path, name: str) -> None:
        """A journal of another name is started again."""
        self._path = path
        self._name = name
        self.answers: list[tuple[float, ...]] = self._read()
        self._begin()

    def _read(self) -> list[tuple[float, ...]]:
        try:
            lines = self._path.read_text("utf-8").split("\n")
        except (OSError, UnicodeDecodeError):
            return []
        if not lines or lines[0] != self._name:
            return []
        whole = lines[1:-1]  # what follows the last line's end was being written
        return [tuple(json.loads(line)) for line in whole]

    def _begin(self) -> None:
        """Write what was read, whole lines only, and leave the file open for more."""
        partial = self._path.with_name(self._path.name + ".new")
        lines = [self._name, *map(json.dumps, self.answers)]
        partial.write_text("\n".join(lines) + "\n", "utf-8")
        partial.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8")

    def add(self, logprobs: Sequence[float]) -> None:
        """One more answer; it outlives the process from here on."""
        self.answers.append(tuple(logprobs))
        self._file.write(json.dumps(list(logprobs)) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Leave the file for a later run."""
        self._file.close()

    def remove(self) -> None:
        """The table is written: the journal has done its work."""
        self._file.close()
        self._path.unlink(missing_ok=True)


def label_rows(
    job: LabelJob, rows: Sequence[Row], ask: Ask, judge: Judge, journal: LabelJournal
) -> Iterator[int]:
    """Ask what the journal lacks; yields the number of rows done after each."""
    template = RowTemplate(job.template)
    done = len(journal.answers)
    prompts = (ask(template.fill(row)) for row in islice(rows, done, None))
    for number, answer in enumerate(judge.ask(prompts, job.choices), done + 1):
        journal.add(answer.logprobs)
        yield number


def make_table(
    job: LabelJob, rows: Sequence[Row], answers: Sequence[Sequence[float]]
) -> LabelTable:
    """Calibrate with the labels that are known, then label what is sure enough."""
    names = [choice.name for choice in job.choices]
    right = {
        place: names.index(row[job.known])
        for place, row in enumerate(rows)
        if job.known is not None and row.get(job.known) in names
    }
    temperature = (
        fit_temperature([answers[place] for place in right], list(right.values())) if right else 1.0
    )
    labelled = tuple(_labelled(job, names, share_out(row, temperature)) for row in answers)
    met = [labelled[at].label == names[place] for at, place in right.items() if labelled[at].label]
    return LabelTable(labelled, temperature, len(right), sum(met) / len(met) if met else None)


def _labelled(job: LabelJob, names: Sequence[str], shares: tuple[float, ...]) -> Labelled:
    best = max(shares)
    return Labelled(shares, names[shares.index(best)] if best >= job.threshold else None)


# --- tables on disk --------------------------------------------------------------------------


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a .csv (with a header), .jsonl or .parquet file, every value as text."""
    try:
        if path.suffix == ".parquet":
            found = _parquet().read_table(path).to_pylist()
        elif path.suffix in (".jsonl", ".ndjson"):
            found = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]
        else:
            with path.open(encoding="utf-8", newline="") as file:
                found = list(csv.DictReader(file, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise BadInput(f"{path}: the rows cannot be read: {error}") from error
    if not found:
        raise BadInput(f"{path}: there is no row in it; the first line names the columns")
    return [{str(k): "" if v is None else str(v) for k, v in row.items()} for row in found]


def write_table(
    path: Path, rows: Sequence[Row], choices: Sequence[Choice], table: LabelTable
) -> None:
    """The rows with `label` and a `p_<choice>` column each; the suffix says in which form."""
    written = [_out(row, choices, one) for row, one in zip(rows, table.labelled, strict=True)]
    partial = path.with_name(path.name + ".new")
    if path.suffix == ".parquet":
        import pyarrow as pa

        _parquet().write_table(pa.Table.from_pylist(written), partial)
    elif path.suffix in (".jsonl", ".ndjson"):
        partial.write_text("".join(json.dumps(row) + "\n" for row in written), "utf-8")
    else:
        with partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(written[0]))
            writer.writeheader()
            writer.writerows(written)
    partial.replace(path)


def _out(row: Row, choices: Sequence[Choice], one: Labelled) -> dict[str, Any]:
    shares = zip(choices, one.probabilities, strict=True)
    return {**row, "label": one.label} | {
        f"p_{choice.name}": share if math.isfinite(share) else None for choice, share in shares
    }


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra(
            "Parquet files need pyarrow: pip install 'kdn[label]', or write .csv or .jsonl"
        ) from error
    return pyarrow.parquet
