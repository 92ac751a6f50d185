"""kdn batch: tables through engines on Ray, on this machine or on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from kdn.cli.commands import Commands
from kdn.cli.grouped import grouped
from kdn.cli.options import JsonOption, ModelChoice
from kdn.cli.show import emit, progress_bar, say, tell
from kdn.machine.files import expanded
from kdn.machine.text import counted, read_text

if TYPE_CHECKING:
    from kdn.scale.ray import BatchJob, BatchJournal, BatchResult, BatchSettings, RowResult

__all__ = ["app"]

app = typer.Typer(cls=Commands, no_args_is_help=True, help="Tables through many engines, on Ray.")
_SHOWN_FAILURES = 10

DataArgument = Annotated[
    Path, typer.Argument(help="A .csv, .tsv, .jsonl or .parquet file.", exists=True, dir_okay=False)
]
OutOption = Annotated[
    Path, typer.Option("--out", "-o", help="A .parquet, .csv, .tsv or .jsonl file.")
]
ForceOption = Annotated[
    bool,
    typer.Option("--force", help="Write over a table, or discard results of another run."),
]
SaltOption = Annotated[str, typer.Option(help="Whose KV it is.")]


@dataclass(frozen=True)
class Engines:
    """Where the engines run, and how many there are."""

    address: Annotated[
        str | None, typer.Option(help="A Ray cluster: auto, HOST:6379; this machine without it.")
    ] = None
    actors: Annotated[int, typer.Option(min=1, help="Engines at the same time.")] = 1
    cpus: Annotated[float, typer.Option(min=0.1, max=1e4, help="Processors of each.")] = 1.0
    gpus: Annotated[float, typer.Option(min=0, max=1e4, help="GPUs of each.")] = 0.0
    batch_rows: Annotated[
        int, typer.Option(min=1, help="Rows that an engine is given together.")
    ] = 64

    def of(self, choice: ModelChoice) -> BatchSettings:
        """These engines, each with this model."""
        from kdn.scale.ray import BatchSettings

        home = None if choice.home is None else str(expanded(choice.home).absolute())
        model = (choice.model, home, choice.device, choice.dtype, choice.quantization)
        return BatchSettings(*model, *astuple(self))


@app.callback()
def batch() -> None:
    """Tables through many engines, on Ray; a row that fails keeps its error, a dead engine loses none."""


@app.command()
@grouped
def prefill(
    data: DataArgument,
    *,
    out: OutOption,
    column: Annotated[str, typer.Option(help="The column of texts.")] = "text",
    salt: SaltOption = "",
    force: ForceOption = False,
    engines: Engines,
    choice: ModelChoice,
    as_json: JsonOption = False,
) -> None:
    """Compute and store the KV of a text of each row."""
    from kdn.scale.ray import PrefillBatch

    _run(data, out, PrefillBatch(column, salt), engines.of(choice), force=force, as_json=as_json)


@app.command()
@grouped
def label(
    data: DataArgument,
    *,
    out: OutOption,
    template: Annotated[
        str,
        typer.Option(
            "--template", "-t", help="The question, with {column} places; @FILE reads it."
        ),
    ],
    choices: Annotated[str, typer.Option("--choices", "-c", help="Answers, e.g. yes,no.")],
    threshold: Annotated[float, typer.Option(min=0, max=1, help="No label below it.")] = 0.0,
    salt: SaltOption = "",
    force: ForceOption = False,
    engines: Engines,
    choice: ModelChoice,
    as_json: JsonOption = False,
) -> None:
    """Label each row with one of a few choices."""
    from kdn.scale.ray import LabelBatch

    asked = read_text(Path(template[1:])) if template.startswith("@") else template
    words = tuple(word.strip() for word in choices.split(",") if word.strip())
    job = LabelBatch(asked, words, threshold, salt)
    _run(data, out, job, engines.of(choice), force=force, as_json=as_json)


@app.command()
@grouped
def rerank(
    data: DataArgument,
    *,
    out: OutOption,
    query: Annotated[str, typer.Option(help="The column of queries.")] = "query",
    document: Annotated[str, typer.Option(help="The column of documents.")] = "document",
    layout: Annotated[str, typer.Option(help="document-first or query-first.")] = "document-first",
    template: Annotated[str | None, typer.Option(help="A published reranker's name.")] = None,
    instruction: Annotated[str | None, typer.Option(help="What to ask about each text.")] = None,
    salt: SaltOption = "",
    force: ForceOption = False,
    engines: Engines,
    choice: ModelChoice,
    as_json: JsonOption = False,
) -> None:
    """Score each row's document by its query."""
    from kdn.scale.ray import RerankBatch

    job = RerankBatch(query, document, layout, template, instruction, salt)
    _run(data, out, job, engines.of(choice), force=force, as_json=as_json)


def _run(
    data: Path, out: Path, job: BatchJob, settings: BatchSettings, *, force: bool, as_json: bool
) -> None:
    from kdn.rank import check_out, read_rows, write_rows
    from kdn.scale.ray import BatchJournal, check_batch, run_batch

    check_out(out, data, force=force)
    rows, started = read_rows(data), perf_counter()
    check_batch(rows, job, settings)
    journal = BatchJournal(out.with_name(out.name + ".journal"), rows, job, settings, force=force)
    resumed = len(journal.lines)
    if resumed:
        say(f"going on with {resumed} of {counted(len(rows), 'row')} from {journal.path}")
    with _kept(journal, len(rows)) as keep:
        found = run_batch(rows, job, settings, done=journal.done, on_rows=keep)
        seconds = perf_counter() - started
        write_rows(out, found.rows, found.columns)
    journal.remove()
    _report(out, found, settings.actors, resumed, seconds, as_json=as_json)


@contextmanager
def _kept(
    journal: BatchJournal, num_rows: int
) -> Iterator[Callable[[Mapping[int, RowResult]], None]]:
    """What keeps results as they come, under a bar; how many are kept is told at an early end."""

    def keep(came: Mapping[int, RowResult]) -> None:
        journal.add(*came.items())
        bar.update(task, completed=len(journal.lines))

    try:
        with progress_bar() as bar:
            task = bar.add_task(
                counted(num_rows, "row"), total=num_rows, completed=len(journal.lines)
            )
            yield keep
    except BaseException:
        journal.close()
        if journal.lines:
            say(
                f"kdn: ended early: {journal.path} keeps {len(journal.lines)} of {counted(num_rows, 'row')},"
                " and the same command goes on from there"
            )
        raise


def _report(
    out: Path, found: BatchResult, actors: int, resumed: int, seconds: float, *, as_json: bool
) -> None:
    if as_json:
        failed = [{"row": number, "reason": why} for number, why in found.failed.items()]
        emit(
            {
                "out": out,
                "rows": len(found.rows),
                "resumed": resumed,
                "failed": failed,
                "seconds": seconds,
            }
        )
        return
    tell(
        f"{out}: {counted(len(found.rows), 'row')}, {len(found.failed)} failed;"
        f" {(len(found.rows) - resumed) / seconds:.1f} rows/s with {actors} engines"
    )
    for number, why in list(found.failed.items())[:_SHOWN_FAILURES]:
        say(f"row {number} failed: {why}")
