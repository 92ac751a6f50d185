"""kdn ingest: documents into the library, with a bar, and safely stopped by Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdn.cli.grouped import grouped
from kdn.cli.options import (
    JsonOption,
    ModelChoice,
)
from kdn.cli.show import (
    emit,
    printable,
    progress_bar,
    say,
    size_text,
    tell,
    tell_failures,
    time_text,
)
from kdn.cli.steer import RecipeOption, needed_recipe
from kdn.errors import BadInput
from kdn.machine.process import INTERRUPTED
from kdn.machine.text import counted

if TYPE_CHECKING:
    from rich.progress import TaskID

    from kdn.api import Kdn
    from kdn.rag import IngestReport, Part
    from kdn.rag import Progress as IngestProgress

__all__ = ["every_part", "ingest", "stop_on_interrupt"]


@grouped
def ingest(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders.", exists=True)],
    *,
    prefill: Annotated[
        bool, typer.Option("--prefill", help="Compute all KV now, not on first use.")
    ] = False,
    rerank: Annotated[
        bool,
        typer.Option(
            "--rerank",
            help="Compute now what `kdn rerank` reuses: the KV of --prefill, or that of the "
            "adapter that kdn brings for this model.",
        ),
    ] = False,
    steer: RecipeOption = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Pass over such files in folders, as a .gitignore writes them; may be repeated.",
        ),
    ] = None,
    choice: ModelChoice,
    as_json: JsonOption = False,
) -> None:
    """Take documents into the library. Again: only what changed is done."""
    from kdn.api.steered import prefill_steered

    recipe = None if steer is None else needed_recipe(steer, choice.home)
    with (
        choice.open() as kdn,
        stop_on_interrupt() as stopped,
    ):
        adapter = kdn.scoring.reranker() if rerank else None
        _announce(kdn, paths, exclude or (), prefill=prefill or rerank)
        if rerank and adapter is None:
            say("documents stand first when they are ranked: answers use the same KV")
        with _bars() as (on_progress, on_prefill):
            report = kdn.ingest(
                paths,
                exclude=exclude or (),
                adapter=adapter,
                prefill=prefill or rerank,
                on_progress=on_progress,
                on_prefill=on_prefill,
                cancelled=stopped,
            )
        try:
            if recipe is not None and not report.cancelled:
                sources = (*report.added, *report.updated, *report.unchanged)
                parts = (part for source in sources for part in kdn.library.parts(source))

                def steered(part: Part) -> None:
                    prefill_steered(kdn, part.text, recipe, part.key)

                if not every_part(parts, steered, stopped):
                    report = replace(report, cancelled=True)
        finally:  # where steering fails, the documents are in all the same
            kdn.store.flush()
            failed = tell_failures(kdn.trace)
            if as_json:
                emit(_shape(report))
            else:
                _print(report)
    if report.cancelled:
        say("kdn: stopped; the documents counted above are in, whole; ingest again for the rest")
        raise typer.Exit(INTERRUPTED)
    _refuse_nothing(report)
    if failed:
        raise typer.Exit(1)


def every_part(
    parts: Iterable[Part], prefill: Callable[[Part], None], stopped: Callable[[], bool]
) -> bool:
    """Prefill the parts, one after the other; False where it was stopped before the last one."""
    for part in parts:
        if stopped():
            return False
        prefill(part)
    return True


def _refuse_nothing(report: IngestReport) -> None:
    """A run that took nothing in, and had nothing in there already, has failed.

    Raises BadInput.
    """
    if not (report.added or report.updated or report.unchanged or report.removed):
        what = (
            f"none of {counted(len(report.refused), 'file')} could be read"
            if report.refused
            else "there are no files in it that kdn reads"
        )
        raise BadInput(f"nothing was taken in: {what}")


def _announce(kdn: Kdn, paths: list[Path], exclude: Sequence[str], *, prefill: bool) -> None:
    """Say what is coming before it comes: files, tokens, bytes and minutes."""
    survey = kdn.cost.survey(kdn.library, paths, exclude)
    minutes = (survey.ingest_minutes or 0) + (survey.prefill_minutes or 0 if prefill else 0)
    kv = size_text(survey.kv_bytes or 0)
    later = "now" if prefill else "if all of it is used"
    say(
        f"{counted(len(survey.files), 'file')}, {size_text(survey.num_bytes)}, about {survey.num_tokens:,} "
        f"tokens; {kv} of KV {later}; about {time_text(60 * minutes)}"
    )


@contextmanager
def _bars() -> Iterator[tuple[Callable[[IngestProgress], None], Callable[[int, int], None]]]:
    """One bar for reading, and one for the KV once that begins."""
    with progress_bar() as bar:
        task = bar.add_task("reading", total=None)

        def show(progress: IngestProgress) -> None:
            name = printable(Path(progress.source).name[:40])
            bar.update(
                task, total=progress.num_bytes, completed=progress.bytes_done, description=name
            )

        storing: list[TaskID] = []

        def show_prefill(tokens_done: int, num_tokens: int) -> None:
            if not storing:
                storing.append(bar.add_task("storing KV", total=num_tokens))
            bar.update(storing[0], completed=tokens_done)

        yield show, show_prefill


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C only makes the function true; the second one interrupts."""
    stopped = False

    def stop(_signal: int, _frame: object) -> None:
        nonlocal stopped
        stopped = True
        signal.signal(signal.SIGINT, before)
        say("\nstopping after the current document (Ctrl-C again stops immediately)")

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield lambda: stopped
    finally:
        signal.signal(signal.SIGINT, before)


def _shape(report: IngestReport) -> dict[str, Any]:
    return {
        "added": report.added,
        "updated": report.updated,
        "unchanged": report.unchanged,
        "removed": report.removed,
        "refused": [{"path": r.path, "reason": r.reason} for r in report.refused],
        "passages": report.num_passages,
        "parts": report.num_parts,
        "tokens": report.num_tokens,
        "seconds": round(report.seconds, 3),
        "cancelled": report.cancelled,
    }


def _print(report: IngestReport) -> None:
    counts = {
        "added": len(report.added),
        "updated": len(report.updated),
        "unchanged": len(report.unchanged),
        "removed": len(report.removed),
        "refused": len(report.refused),
    }
    done = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    nothing = (
        "no document was read" if report.cancelled else "there is no document in what was named"
    )
    tell(done or nothing)
    tell(
        f"{counted(report.num_tokens, 'new token')} in {counted(report.num_parts, 'part')}, "
        f"{time_text(report.seconds)}"
    )
    for refusal in report.refused:
        say(f"  left out: {refusal.reason}")
