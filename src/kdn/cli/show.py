"""What commands print: results on stdout, everything said meanwhile on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kdn.trace import Recorder, Trace

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

__all__ = [
    "emit",
    "progress_bar",
    "say",
    "size_text",
    "table",
    "tell_failures",
    "time_text",
    "write_piece",
]


def emit(shape: object) -> None:
    """One line of JSON on stdout: the machine-readable result of a command."""
    sys.stdout.write(to_json(shape).decode() + "\n")
    sys.stdout.flush()


def to_json(shape: object, *, indent: int | None = None) -> bytes:
    """JSON of dataclasses, structs and plain values; paths become text."""
    data = msgspec.json.encode(shape, enc_hook=_plain)
    return msgspec.json.format(data, indent=indent) if indent else data


def _plain(value: object) -> Any:
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise NotImplementedError(f"no JSON for {type(value).__name__}")


def say(text: str) -> None:
    """One line for people, on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def write_piece(text: str) -> None:
    """A piece of a streamed answer on stdout, immediately."""
    sys.stdout.write(text)
    sys.stdout.flush()


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A small table on stdout; the first column is text, the others are numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    found = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        found.add_column(column, justify="right" if index else "left", overflow="fold")
    for row in rows:
        found.add_row(*map(str, row))
    _console(error=False).print(found)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar on stderr that removes itself; silent where stderr is no terminal."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
    )
    console = _console(error=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        yield bar


def _console(*, error: bool) -> Console:
    from rich.console import Console

    return Console(stderr=error, highlight=False)


def size_text(size_bytes: float) -> str:
    """`1.5 GB`, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.3g} TB"


def time_text(seconds: float) -> str:
    """`850 ms`, `12.3 s` or `4.0 min`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def tell_failures(trace: Trace) -> None:
    """Of every tier that failed meanwhile, say why it last did: an empty answer is not to look sound."""
    failed = trace.events("store.failed") if isinstance(trace, Recorder) else []
    for tier, reason in {event.fields["tier"]: event.fields["reason"] for event in failed}.items():
        say(f"note: the {tier} tier could not be asked: {reason}")
