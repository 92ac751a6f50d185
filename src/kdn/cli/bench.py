"""kdn bench: one question, measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdn.cli.options import HomeOption, ModelOption, SeedOption, output_folder
from kdn.cli.show import emit, say
from kdn.errors import BadInput
from kdn.machine.files import refuse_special

if TYPE_CHECKING:
    from kdn.bench import BenchOptions

__all__ = ["USED_BY", "bench"]


def _json_file(path: Path | None) -> Path | None:
    """A file whose folder may be missing, or `-`."""
    if path is not None and path != Path("-"):
        output_folder(path.parent)
        refuse_special(path)
    return path


USED_BY = {
    "only": ("blend", "l4s", "ndcg", "rag", "rtc", "share", "steer", "structured"),
    "arms": ("blend", "steer", "vllm"),
    "sets": ("steer",),
    "ratios": ("blend",),
    "adapters": ("share",),
    "items": ("blend", "share", "steer"),
    "data": ("blend", "blend-load", "codecs", "cost", "jct", "l4s", "label", "ndcg", "policies", "rag",
             "rerank", "router", "rtc", "share", "steer"),
    "seed": ("blend", "blend-load", "cost", "engine", "jct", "kdn", "l4s", "label", "mil", "policies", "rag",
             "ray", "rerank", "router", "serve", "share", "steer", "store", "structured", "vllm"),
    "pairs": ("blend", "codecs", "engine", "label", "mil", "rerank", "serve", "share", "stack", "steer",
              "store", "structured", "vllm"),
    "rows": ("blend", "l4s", "ndcg", "rag", "ray", "rtc", "share", "steer", "store", "vllm"),
}  # fmt: skip
"""Options that only some benchmarks look at."""


def bench(
    name: Annotated[str, typer.Argument(help="engine, stack, ...")],
    *,
    model: ModelOption = "smollm2-135m",
    home: HomeOption = None,
    data: Annotated[Path | None, typer.Option(exists=True, help="Data to measure with.")] = None,
    adapters: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, help="Of share: what scripts/share/train.py wrote."
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Ends within 50 seconds.")] = False,
    only: Annotated[
        str | None, typer.Option(help="A part of it, where it has parts: quality, timing.")
    ] = None,
    arms: Annotated[
        str | None,
        typer.Option(help="Of blend, steer, vllm: the ways to compare, comma between: ours,hkvd."),
    ] = None,
    sets: Annotated[
        str | None,
        typer.Option(help="Of steer: sets of questions, comma between: hotpotqa,musique."),
    ] = None,
    ratio: Annotated[
        list[float] | None,
        typer.Option(min=0, max=1, help="Of blend: a share of rows to recompute; may be repeated."),
    ] = None,
    items: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of blend, share, steer: at most so many prompts, held-out items, or questions.",
        ),
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="Keep finished rows in this file, and go on from there."),
    ] = None,
    pairs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Rounds of a comparison, each of all sides; else as many as usual."
        ),
    ] = None,
    seed: SeedOption = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads for both sides.")] = 2,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            dir_okay=False,
            callback=_json_file,
            help="Write the result to a file; - for stdout.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            file_okay=False,
            callback=output_folder,
            help="Write a page with a plot into this folder.",
        ),
    ] = None,
) -> None:
    """Run one benchmark and print its table."""
    from rich.console import Console

    from kdn.bench import BenchOptions, load_bench, print_result, write_json, write_page

    options = BenchOptions(
        model=model,
        data=data,
        adapters=adapters,
        quick=quick,
        only=only,
        arms=tuple(arms.split(",")) if arms else None,
        sets=tuple(sets.split(",")) if sets else None,
        ratios=tuple(ratio) if ratio else None,
        items=items,
        rows=rows,
        pairs=pairs,
        seed=seed,
        threads=threads,
        home=home,
        say=say,
    )
    run = load_bench(name)
    _refuse_unused(name, options)
    result = run(options)
    if json_file == Path("-"):
        emit(result.as_json())
        return
    print_result(result, Console())
    if json_file is not None:
        write_json(result, json_file)
    if report is not None:
        say(f"wrote {write_page(result, report)}")


def _refuse_unused(name: str, options: BenchOptions) -> None:
    """Raises BadInput for an option that this benchmark would not look at."""
    for field, users in USED_BY.items():
        if getattr(options, field) != getattr(type(options), field) and name not in users:
            option = field.removesuffix("s") if field == "ratios" else field
            raise BadInput(f"{name} has no use for --{option}; it is for {', '.join(users)}")
