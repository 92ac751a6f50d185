"""kdn batch: tables through engines on Ray, on this machine or on a cluster."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from kdn.cli.commands import Commands
from kdn.cli.grouped import grouped
from kdn.cli.options import JsonOption, ModelChoice
from kdn.cli.show import emit, progress_bar, say, tell
from kdn.machine.files import expanded, is_there
from kdn.machine.text import counted, read_text

if TYPE_CHECKING:
    from kdn.scale.ray import BatchJob, BatchResult, BatchSettings

__all__ = ["app", "keep_early"]

app = typer.Typer(cls=Commands, no_args_is_help=True, help="Tables through many engines, on Ray.")
_SHOWN_FAILURES = 10

DataArgument = Annotated[
    Path, typer.Argument(help="A .csv, .tsv, .jsonl or .parquet file.", exists=True, dir_okay=False)
]
OutOption = Annotated[
    Path, typer.Option("--out", "-o", help="A .parquet, .csv, .tsv or .jsonl file.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Write over a table that is there.")]
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


def keep_early(out: Path, early: BatchResult) -> None:
    """Write the rows that were done beside the table that is not made, under a name that is free."""
    from kdn.rank import write_rows

    names = (f"{out.stem}.partial{number or ''}{out.suffix}" for number in count())
    path = next(path for name in names if not is_there(path := out.with_name(name)))
    try:
        write_rows(path, early.rows, early.columns)
    except Exception as error:  # noqa: BLE001  why the run ended is what is raised
        say(f"kdn: {error}")
    else:
        say(f"{path}: {counted(len(early.rows), 'row')} done before the end")


def _run(
    data: Path, out: Path, job: BatchJob, settings: BatchSettings, *, force: bool, as_json: bool
) -> None:
    from kdn.rank import check_out, read_rows, write_rows
    from kdn.scale.ray import run_batch

    check_out(out, data, force=force)
    rows, started = read_rows(data), perf_counter()
    with progress_bar() as bar:
        task = bar.add_task(f"{counted(len(rows), 'row')}", total=len(rows))
        found = run_batch(
            rows,
            job,
            settings,
            lambda done: bar.update(task, completed=done),
            lambda early: keep_early(out, early),
        )
    seconds = perf_counter() - started
    write_rows(out, found.rows, found.columns)
    if as_json:
        failed = [{"row": number, "reason": why} for number, why in found.failed.items()]
        emit({"out": out, "rows": len(rows), "failed": failed, "seconds": seconds})
        return
    tell(
        f"{out}: {counted(len(rows), 'row')}, {len(found.failed)} failed; {len(rows) / seconds:.1f} rows/s"
        f" with {settings.actors} engines"
    )
    for number, why in list(found.failed.items())[:_SHOWN_FAILURES]:
        say(f"row {number} failed: {why}")
