"""A result as a table on the terminal, as JSON, and as a page with a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kdn.bench.common.result import USUAL_DTYPE, BenchOptions, Result, Row, Scalar
from kdn.machine.files import READABLE, publish_file, publish_made
from kdn.plot import Figure, draw

__all__ = ["draw_figures", "print_result", "write_json", "write_page"]


def print_result(result: Result, console: Console) -> None:
    """The rows, the summary and the notes, for people."""
    if not console.is_terminal:  # a file has no width of its own; narrow cells would be unreadable
        console.width = max(console.width, 160)
    console.print(f"{result.bench}: {result.model_name}, {_machine_line(result)}", markup=False)
    for part, rows in _parts(result.rows):
        columns = _columns(rows)
        table = Table(*map(escape, columns), title=escape(part) if part else None)
        for row in rows:
            table.add_row(*(escape(_cell(row.get(column))) for column in columns))
        console.print(table)
    summary = Table("summary", "value")
    for name, value in result.summary.items():
        summary.add_row(name, _cell(value))
    console.print(summary)
    for note in result.notes:
        console.print(f"note: {note}", highlight=False, markup=False)


def write_json(result: Result, path: Path) -> None:
    """The result as one JSON object, whole or not at all; the folder is made if need be."""
    encoded = msgspec.json.encode(result.as_json())
    publish_made(path, msgspec.json.format(encoded, indent=2) + b"\n", READABLE)


def write_page(result: Result, folder: Path) -> Path:
    """`folder/<page>.md` with its plot and JSON beside it; returns the page's path.

    Raises MissingExtra when there is something to plot and matplotlib is not installed.
    """
    folder.mkdir(
        parents=True, exist_ok=True
    )  # for others to read, unlike what `publish_file` makes
    name = result.page_name
    write_json(result, folder / f"{name}.json")
    pictures = draw_figures(result.figures, folder, name)
    page = folder / f"{name}.md"
    publish_file(page, _page(result, pictures).encode(), READABLE)
    return page


def draw_figures(figures: Sequence[Figure], folder: Path, page: str) -> list[str]:
    """The figures of a page as `<page>-<number>.svg`; returns their names within `folder`."""
    names = [f"{page}-{number}.svg" for number in range(len(figures))]
    for figure, name in zip(figures, names, strict=True):
        draw(figure, folder / name)
    return names


def _page(result: Result, pictures: Sequence[str]) -> str:
    lines = [
        f"# Benchmark: {result.bench}",
        "",
        f"Model `{result.model_name}`{_dtype(result)}; commit `{result.commit}`; {_machine_line(result)}.",
        f"Made by `{_command(result)}`.",
        "",
        *_tables(result.rows),
        "| summary | value |",
        "|---|---|",
        *(f"| `{name}` | {_cell(value)} |" for name, value in result.summary.items()),
    ]
    for picture in pictures:
        lines += ["", f"![{Path(picture).stem}]({picture})"]
    for note in result.notes:
        lines += ["", f"Note: {note}"]
    return "\n".join(lines) + "\n"


def _dtype(result: Result) -> str:
    return "" if result.dtype in (None, USUAL_DTYPE) else f" in {result.dtype}"


def _command(result: Result) -> str:
    """What makes the page again: options that differ from the usual ones are named."""
    usual = BenchOptions().describe_kept()
    told = ["kdn bench", result.bench]
    for name, value in result.config.items():
        if name in usual and value != usual[name]:
            told += [f"--{name}"] if value is True else [f"--{name} {value}"]
    return " ".join((*told, "--report docs/benchmarks"))


def _parts(rows: Sequence[Row]) -> list[tuple[str | None, list[Row]]]:
    """The rows of each `part` that they name, or all of them where none does, without its name."""
    found: dict[str | None, list[Row]] = {}
    for row in rows:
        part = None if row.get("part") is None else str(row["part"])
        found.setdefault(part, []).append({k: v for k, v in row.items() if k != "part"})
    return list(found.items())


def _tables(rows: Sequence[Row]) -> list[str]:
    """A table for each part."""
    lines = []
    for part, own in _parts(rows):
        lines += [f"## {part}", ""] if part is not None else []
        lines += [*_markdown_table(own), ""]
    return lines


def _markdown_table(rows: Sequence[Row]) -> list[str]:
    columns = _columns(rows)
    return [
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
        *(f"| {' | '.join(_cell(row.get(column)) for column in columns)} |" for row in rows),
    ]


def _columns(rows: Sequence[Row]) -> list[str]:
    """Every column that some row has, in order of appearance."""
    return list(dict.fromkeys(column for row in rows for column in row))


def _cell(value: Scalar) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return str(value)


def _machine_line(result: Result) -> str:
    machine = result.machine
    place = machine.gpu or f"{machine.cores} cores of {machine.cpu}"
    return f"{place}, {machine.memory_bytes / 1e9:.0f} GB, torch {machine.torch}"
