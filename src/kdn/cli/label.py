"""kdn label: one answer a row, with how likely each was."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from kdn.cli.grouped import grouped
from kdn.cli.options import (
    AdapterOption,
    EngineChoice,
    JsonOption,
    ModelChoice,
    first_adapter,
)
from kdn.cli.show import emit, progress_bar, say, tell
from kdn.machine.text import counted, read_text

if TYPE_CHECKING:
    from kdn.api import Kdn
    from kdn.rank import AskEach, Choice, LabelJob, LabelJournal, LabelTable, Row
    from kdn.scale.remote import RemoteEngine

__all__ = ["label"]

_SHOWN_REFUSALS = 10


@grouped
def label(
    data: Annotated[
        Path,
        typer.Argument(help="A .csv, .tsv, .jsonl or .parquet file.", exists=True, dir_okay=False),
    ],
    *,
    template: Annotated[
        str,
        typer.Option(
            "--template",
            "-t",
            help="The question, with {column} places; @FILE reads it from a file.",
        ),
    ],
    choices: Annotated[
        str, typer.Option("--choices", "-c", help="Answers, e.g. yes,no or spam=A,ham=B.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="A .csv, .tsv, .jsonl or .parquet file.")
    ],
    known: Annotated[
        str | None,
        typer.Option(help="The column of right labels, where known: to calibrate and to count."),
    ] = None,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="No label below this probability.")
    ] = 0.0,
    force: Annotated[
        bool,
        typer.Option("--force", help="Write over a table, or discard answers to other questions."),
    ] = False,
    choice: ModelChoice,
    adapter: AdapterOption = None,
    asked_at: EngineChoice,
    as_json: JsonOption = False,
) -> None:
    """Label every row of a table with one of a few choices; started again, it goes on where it was."""
    from kdn.rank import (
        LabelJob,
        LabelJournal,
        check_out,
        check_rows,
        make_table,
        own_columns,
        read_rows,
        write_table,
    )

    check_out(out, data, force=force)
    rows = read_rows(data)
    asked = read_text(Path(template[1:])) if template.startswith("@") else template
    check_rows(rows, asked, known)
    words = [word.strip() for word in choices.split(",") if word.strip()]
    with ExitStack() as opened:
        if asked_at.engine is not None:
            unused = {"adapter": adapter}
            server = opened.enter_context(asked_at.open(choice, unused))
            asker = _remote(server, words)
        else:
            kdn = opened.enter_context(choice.using(adapter).open())
            asker = _local(kdn, words, first_adapter(adapter))
        job = LabelJob(
            model=asker.fingerprint,
            template=asked,
            choices=asker.choices,
            known=known,
            threshold=threshold,
        )
        journal = LabelJournal(out.with_name(out.name + ".journal"), job.name(rows), force=force)
        resumed = len(journal.lines)
        if resumed:
            say(f"going on after row {resumed} of {len(rows)}")
        started = perf_counter()
        _ask_rows(job, rows, asker, journal)
        seconds = perf_counter() - started
    found = make_table(job, rows, journal.lines)
    write_table(out, rows, job.choices, found)
    journal.remove()
    column = own_columns(rows, job.choices)[0]
    _report(out, found, column, resumed, seconds, as_json=as_json)
    _warn(found, known)


@dataclass(frozen=True)
class _Asker:
    """Who is asked, and how the choices are spelled there."""

    fingerprint: str
    choices: tuple[Choice, ...]
    ask_each: AskEach


def _ask_rows(job: LabelJob, rows: Sequence[Row], asker: _Asker, journal: LabelJournal) -> None:
    """Ask about the rows that the journal has no answer for, and show how far it is."""
    from kdn.rank import label_rows

    try:
        with progress_bar() as bar:
            done = len(journal.lines)
            task = bar.add_task(counted(len(rows), "row"), total=len(rows), completed=done)
            for done in label_rows(job, rows, asker.ask_each, journal):
                bar.update(task, completed=done)
    except BaseException:
        journal.close()
        raise


def _local(kdn: Kdn, words: list[str], adapter: str | None) -> _Asker:
    from kdn.rank import make_choices

    judge = kdn.scoring.judge(adapter=adapter)
    return _Asker(
        f"{kdn.model.fingerprints.of(adapter)}/{adapter}",
        make_choices(words, kdn.model.tokenizer.encode, whole=True),
        lambda questions, choices: judge.ask_each(map(kdn.prompts.question, questions), choices),
    )


def _remote(engine: RemoteEngine, words: list[str]) -> _Asker:
    return _Asker(engine.fingerprint, engine.choices(words), engine.ask_each)


def _warn(found: LabelTable, known: str | None) -> None:
    """Say what a number alone does not: rows left out, and labels that mean nothing."""
    for number, reason in list(found.refused.items())[:_SHOWN_REFUSALS]:
        say(f"row {number} has no label: {reason}")
    if len(found.refused) > _SHOWN_REFUSALS:
        say(
            f"and {counted(len(found.refused) - _SHOWN_REFUSALS, 'more row')}; --json lists them all"
        )
    if known is not None and not found.num_known:
        say(
            f"warning: nothing in the column {known!r} is one of the choices: nothing was calibrated"
        )
    if found.is_at_chance:
        say(
            f"warning: {found.accuracy:.3f} is no better than always answering the commonest label"
            f" ({found.chance:.3f}): these labels say nothing; try a larger model, or another template"
        )


def _report(
    out: Path, found: LabelTable, column: str, resumed: int, seconds: float, *, as_json: bool
) -> None:
    computed = len(found.labelled) - resumed
    if as_json:
        emit(
            {
                "out": out,
                "label_column": column,
                "rows": len(found.labelled),
                "resumed": resumed,
                "abstained": found.num_abstained,
                "refused": [{"row": n, "reason": why} for n, why in found.refused.items()],
                "known": found.num_known,
                "accuracy": found.accuracy,
                "chance": found.chance,
                "temperature": found.temperature,
                "seconds": seconds,
            }
        )
        return
    tell(
        f"{out}: {counted(len(found.labelled), 'row')}, labels in the column {column!r}, "
        f"{counted(found.num_abstained, 'row')} without one; "
        f"{computed / seconds if seconds else 0:.1f} rows/s"
    )
    if found.accuracy is not None:
        tell(
            f"accuracy {found.accuracy:.3f} over {found.num_known} known labels, "
            f"temperature {found.temperature:.2f} fitted on them"
        )
