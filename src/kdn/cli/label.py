"""kdn label: one answer a row, with how likely each was."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from kdn.cli.options import (
    AdapterOption,
    DeviceOption,
    DtypeOption,
    HomeOption,
    Int8Option,
    JsonOption,
    ModelChoice,
    ModelOption,
)
from kdn.cli.show import emit, progress_bar, say

if TYPE_CHECKING:
    from kdn.rank import LabelTable

__all__ = ["label"]


def label(
    data: Annotated[
        Path, typer.Argument(help="A .csv, .jsonl or .parquet file.", exists=True, dir_okay=False)
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
    out: Annotated[Path, typer.Option("--out", "-o", help="A .parquet, .csv or .jsonl file.")],
    known: Annotated[
        str | None,
        typer.Option(help="The column of right labels, where known: to calibrate and to count."),
    ] = None,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="No label below this probability.")
    ] = 0.0,
    model: ModelOption = "smollm2-135m",
    home: HomeOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    int8: Int8Option = False,
    adapter: AdapterOption = None,
    as_json: JsonOption = False,
) -> None:
    """Label every row of a table with one of a few choices; started again, it goes on where it was."""
    from kdn.rank import (
        LabelJob,
        LabelJournal,
        label_rows,
        make_choices,
        make_table,
        read_rows,
        write_table,
    )

    rows = read_rows(data)
    asked = Path(template[1:]).read_text("utf-8") if template.startswith("@") else template
    choice = ModelChoice(model, home, device, dtype, int8, tuple(adapter or ()))
    with choice.open() as kdn:
        used = adapter[0].partition("=")[0] if adapter else None
        words = [word.strip() for word in choices.split(",") if word.strip()]
        job = LabelJob(
            model=f"{kdn.model.decoder.fingerprint}/{used}",
            template=asked,
            choices=make_choices(words, kdn.model.tokenizer.encode, whole=True),
            known=known,
            threshold=threshold,
        )
        journal = LabelJournal(out.with_name(out.name + ".journal"), job.name(rows))
        resumed = len(journal.answers)
        if resumed:
            say(f"going on after row {resumed} of {len(rows)}")
        started = perf_counter()
        try:
            with progress_bar() as bar:
                task = bar.add_task(f"{len(rows)} rows", total=len(rows), completed=resumed)
                for done in label_rows(
                    job, rows, kdn.prompts.question, kdn.scoring.judge(adapter=used), journal
                ):
                    bar.update(task, completed=done)
        except BaseException:
            journal.close()
            raise
        seconds = perf_counter() - started
    found = make_table(job, rows, journal.answers)
    write_table(out, rows, job.choices, found)
    journal.remove()
    _report(out, found, resumed, seconds, as_json=as_json)


def _report(out: Path, found: LabelTable, resumed: int, seconds: float, *, as_json: bool) -> None:
    computed = len(found.labelled) - resumed
    if as_json:
        emit(
            {
                "out": out,
                "rows": len(found.labelled),
                "resumed": resumed,
                "abstained": found.num_abstained,
                "known": found.num_known,
                "accuracy": found.accuracy,
                "temperature": found.temperature,
                "seconds": seconds,
            }
        )
        return
    typer.echo(
        f"{out}: {len(found.labelled)} rows, {found.num_abstained} without a label; "
        f"{computed / seconds if seconds else 0:.1f} rows/s"
    )
    if found.accuracy is not None:
        typer.echo(
            f"accuracy {found.accuracy:.3f} over {found.num_known} known labels, "
            f"temperature {found.temperature:.2f} fitted on them"
        )
