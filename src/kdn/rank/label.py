"""Labelling a table: rows to answers, on disk as they come, so that a killed run goes on where it was.

rows  ->  questions  ->  answers  ->  journal (a line a row)  ->  calibration  ->  table
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from kdn.errors import BadInput, PromptTooLong
from kdn.rank.calibrate import fit_temperature
from kdn.rank.choices import Choice, ChoiceProbabilities, share_out
from kdn.rank.journal import LabelAnswer, LabelJournal, name_run
from kdn.rank.questions import Conversation, RowTemplate
from kdn.rank.rows import Row, columns_of, write_rows

__all__ = [
    "LabelJob",
    "LabelTable",
    "Labelled",
    "answer_of",
    "check_rows",
    "label_rows",
    "make_table",
    "own_columns",
    "write_table",
]

AskEach = Callable[
    [Iterator[Conversation], Sequence[Choice]], Iterator[ChoiceProbabilities | PromptTooLong]
]
"""Answers to questions, in order: of an engine of ours, or of a server's."""


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
        return name_run(said, rows)


@dataclass(frozen=True)
class Labelled:
    """One row's answer. `label` is None where no choice reached the threshold."""

    probabilities: tuple[float, ...]
    """Of the choices; none where the row was refused."""
    label: str | None
    refusal: str = ""
    """Why the row could not be asked about."""


@dataclass(frozen=True)
class LabelTable:
    """All rows labelled, and how well the labels that were known were met."""

    labelled: tuple[Labelled, ...]
    temperature: float
    num_known: int
    accuracy: float | None
    """Among rows of known label that got one; None without such rows."""
    chance: float | None = None
    """The share of the commonest known label: the accuracy of an answer that is always the same."""

    @property
    def num_abstained(self) -> int:
        """Rows without a label: none was likely enough, or the row was refused."""
        return sum(one.label is None for one in self.labelled)

    @property
    def refused(self) -> dict[int, str]:
        """Number of the row, from 1, to the reason."""
        return {number: one.refusal for number, one in enumerate(self.labelled, 1) if one.refusal}

    @property
    def is_at_chance(self) -> bool:
        """Are ten known labels or more met no better than by always naming the commonest?

        By less than two standard errors of that share, that is.
        """
        if self.accuracy is None or self.chance is None or self.num_known < 10:
            return False
        error = math.sqrt(self.chance * (1 - self.chance) / self.num_known)
        return self.accuracy < self.chance + 2 * error


def check_rows(rows: Sequence[Row], template: str, known: str | None = None) -> None:
    """Raises BadInput for a column that the template or `known` names and a row does not have."""
    asked, columns = RowTemplate(template).columns, columns_of(rows)
    if not rows:
        return
    for name in asked:
        if name not in columns:
            raise BadInput(f"the template asks for {name!r}; the columns are {', '.join(columns)}")
    if known is not None and known not in columns:
        raise BadInput(f"no column is called {known!r}; the columns are {', '.join(columns)}")
    for number, row in enumerate(rows, 1):
        missing = [name for name in asked if name not in row]
        if missing:
            raise BadInput(f"row {number} has no {missing[0]!r}, which the template asks for")


def label_rows(
    job: LabelJob, rows: Sequence[Row], ask_each: AskEach, journal: LabelJournal
) -> Iterator[int]:
    """Ask what the journal lacks; yields the number of rows done after each.

    A row that is too long for the model is written down as refused; the others are asked about.
    """
    template = RowTemplate(job.template)
    done = len(journal.lines)
    questions = (template.fill(row) for row in islice(rows, done, None))
    for number, answer in enumerate(ask_each(questions, job.choices), done + 1):
        journal.add(answer_of(answer))
        yield number


def answer_of(answer: ChoiceProbabilities | PromptTooLong) -> LabelAnswer:
    """What is written down of one row."""
    return str(answer) if isinstance(answer, PromptTooLong) else answer.logprobs


def make_table(job: LabelJob, rows: Sequence[Row], answers: Sequence[LabelAnswer]) -> LabelTable:
    """Calibrate with the labels that are known, then label what is sure enough."""
    names = [choice.name for choice in job.choices]
    found = {place: one for place, one in enumerate(answers) if not isinstance(one, str)}
    right = {
        place: names.index(rows[place][job.known])
        for place in found
        if job.known is not None and rows[place].get(job.known) in names
    }
    temperature = (
        fit_temperature([found[place] for place in right], list(right.values())) if right else 1.0
    )
    labelled = tuple(
        Labelled((), None, one)
        if isinstance(one, str)
        else _labelled(job, names, share_out(one, temperature))
        for one in answers
    )
    met = [labelled[at].label == names[place] for at, place in right.items() if labelled[at].label]
    accuracy = sum(met) / len(met) if met else None
    return LabelTable(labelled, temperature, len(right), accuracy, _chance(list(right.values())))


def _chance(right: Sequence[int]) -> float | None:
    """How often the commonest known label is right: what knowing nothing of a row gives."""
    return max(Counter(right).values()) / len(right) if right else None


def _labelled(job: LabelJob, names: Sequence[str], shares: tuple[float, ...]) -> Labelled:
    best = max(shares)
    return Labelled(shares, names[shares.index(best)] if best >= job.threshold else None)


def write_table(
    path: Path, rows: Sequence[Row], choices: Sequence[Choice], table: LabelTable
) -> None:
    """The rows with `label` and a `p_<choice>` column each; the suffix says in which form.

    Where the rows have a column of such a name, theirs is kept and ours is `kdn_label`.
    """
    names = own_columns(rows, choices)
    written = [_out(row, names, one) for row, one in zip(rows, table.labelled, strict=True)]
    write_rows(path, written, (*columns_of(rows), *names))


def own_columns(rows: Sequence[Row], choices: Sequence[Choice]) -> list[str]:
    """The names of the columns that labelling adds: that of the label, then one a choice."""
    theirs = set(columns_of(rows))
    names = []
    for wanted in ("label", *(f"p_{choice.name}" for choice in choices)):
        name = wanted
        while name in theirs:
            name = f"kdn_{name}"
        names.append(name)
    return names


def _out(row: Row, names: Sequence[str], one: Labelled) -> dict[str, Any]:
    shares = [share if math.isfinite(share) else None for share in one.probabilities]
    values = (one.label, *(shares or [None] * (len(names) - 1)))
    return {**row, **dict(zip(names, values, strict=True))}
