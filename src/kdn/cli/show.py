"""What commands print: results on stdout, everything said meanwhile on stderr."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from kdn.machine.text import counted
from kdn.trace import Recorder, Trace

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = [
    "emit",
    "printable",
    "printed_even_early",
    "progress_bar",
    "say",
    "say_for_trying",
    "size_text",
    "table",
    "tell",
    "tell_failures",
    "time_text",
    "watched",
    "write_piece",
]


T = TypeVar("T")
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What steers a terminal, or the direction of its text; and bytes of file names that are no UTF-8."""


def printable(text: str) -> str:
    """`text` with what would steer a terminal shown as an escape: file names and answers are foreign."""
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)


def emit(shape: object) -> None:
    """One JSON object in one line on stdout: the machine-readable result of a command."""
    line = to_json(shape).decode()
    assert line.startswith("{"), "--json promises an object"
    # below U+0020 JSON escapes by itself
    sys.stdout.write(_UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", line) + "\n")
    sys.stdout.flush()


def to_json(shape: object, *, indent: int | None = None) -> bytes:
    """JSON of dataclasses, structs and plain values; paths become text."""
    try:
        data = msgspec.json.encode(shape, enc_hook=_plain)
    except UnicodeEncodeError:  # a file's name that is no UTF-8: it is written in escapes
        data = json.dumps(msgspec.to_builtins(shape, enc_hook=_plain)).encode()
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
    sys.stderr.write(printable(text) + "\n")
    sys.stderr.flush()


def say_for_trying(model: str) -> None:
    """Of the packaged model, that its answers are no measure of kdn."""
    if model == "smollm2-135m":
        say(
            f"note: {model} is small and for trying kdn, its answers are often wrong; `kdn models"
            " recommend` names one that fits this machine"
        )


def tell(text: str) -> None:
    """One line of a result, on stdout."""
    write_piece(text + "\n")


def write_piece(text: str) -> None:
    """A piece of a streamed answer on stdout, immediately."""
    sys.stdout.write(printable(text))
    sys.stdout.flush()


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A small table on stdout: text to the left, numbers to the right.

    Where it is wider than the terminal, each row is written as lines instead: no word is broken.
    """
    head = [printable(column) for column in columns]
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    numeric = [all(map(_is_number, column)) for column in zip(*cells, strict=True)]
    numeric = numeric or [False] * len(head)
    if title:
        tell(title)
    if sum(widths) + 2 * (len(widths) - 1) > _terminal_columns():
        _tell_records(head, cells)
        return
    tell(_line(head, widths, numeric))
    tell("  ".join("-" * width for width in widths))
    for row in cells:
        tell(_line(row, widths, numeric))


def _line(cells: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    places = zip(cells, widths, numeric, strict=True)
    shown = (cell.rjust(width) if right else cell.ljust(width) for cell, width, right in places)
    return "  ".join(shown).rstrip()


def _is_number(cell: str) -> bool:
    return cell[:1] in "+-.0123456789" or not cell


def _tell_records(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    width = max(map(len, head))
    for row in rows:
        for name, cell in zip(head, row, strict=True):
            tell(f"{name.ljust(width)}  {cell}".rstrip())
        tell("")


def _terminal_columns() -> int:
    """The width of the terminal; of a file or pipe, as wide as it takes."""
    if not (sys.stdout.isatty() or "COLUMNS" in os.environ):
        return sys.maxsize
    return shutil.get_terminal_size().columns


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar on stderr that removes itself; silent where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True, highlight=False)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        yield bar


@contextmanager
def watched(blocks: Sequence[T], doing: str) -> Iterator[Iterator[T]]:
    """The blocks one by one, under a bar: one is done when the next is asked for. What began and ends before
    the last is told how many were done."""
    began = False

    def each() -> Iterator[T]:
        nonlocal began
        began = True
        for one in blocks:
            yield one
            step()

    with counting(len(blocks), doing, lambda: began) as step:  # else a wrong word was refused
        yield each()


@contextmanager
def counting(
    num_blocks: int, doing: str, began: Callable[[], bool] = lambda: True
) -> Iterator[Callable[[], None]]:
    """What to call once a block is done, under a bar; as `watched` for work on several at a time."""
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        bar.advance(task)

    try:
        with progress_bar() as bar:
            task = bar.add_task(doing, total=num_blocks)
            yield step
    except BaseException:
        if began():
            say(f"kdn: ended after {done} of {counted(num_blocks, 'block')}")
        raise


@contextmanager
def printed_even_early(print_rows: Callable[[], None]) -> Iterator[None]:
    """Prints in the end, and after Ctrl-C before it goes on."""
    try:
        yield
    except KeyboardInterrupt:
        say("kdn: ended early: these are the rows by then")
        print_rows()
        raise
    print_rows()


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


def tell_failures(trace: Trace) -> bool:
    """Of every tier that failed or refused blocks meanwhile, say why it last did; False for none.

    An empty answer must not look sound, nor blocks that were not written as if they were.
    """
    if not isinstance(trace, Recorder):
        return False
    for event in trace.events("store.read_only"):
        say(f"note: {event.fields['reason']}")
    failed = trace.events("store.failed")
    for tier, reason in {event.fields["tier"]: event.fields["reason"] for event in failed}.items():
        say(f"note: the {tier} tier could not be asked: {reason}")
    refused = trace.events("store.refuse")
    for tier, reason in {event.fields["tier"]: event.fields["reason"] for event in refused}.items():
        count = sum(event.fields["tier"] == tier for event in refused)
        say(f"note: {counted(count, 'block')} could not be written to the {tier} tier: {reason}")
    return bool(failed or refused)
