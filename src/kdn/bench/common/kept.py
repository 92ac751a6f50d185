"""Finished pieces of a long benchmark, a line of JSON each: a run that is stopped goes on after the last."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdn.bench.common.result import BenchOptions
from kdn.errors import BadInput
from kdn.machine.files import READABLE, publish_file, refuse_special, system_errors

__all__ = ["add_kept", "begin_kept", "read_kept"]

_ROWS_OF = "rows of"
"""What rows follow from, in the first line of their file."""


_KEYS = ("model", "data", "seed", "quick")


def begin_kept(options: BenchOptions, keys: Sequence[str] = _KEYS) -> None:
    """A new file of rows begins with what they follow from: what models compute in here, and those options.

    Raises BadInput for a file that tells another; one that does not tell is taken as it stands.
    """
    if options.rows is None:
        return
    own = {key: options.describe()[key] for key in keys} | {"dtype": options.machine_dtype()}
    lines: list[Any] = []
    _read(options.rows, lines.append)
    heads = (one[_ROWS_OF] for one in lines if isinstance(one, dict) and _ROWS_OF in one)
    told: Any = next(heads, {})
    if not isinstance(told, dict) or told != {key: own.get(key) for key in told}:
        raise BadInput(f"{options.rows} holds rows of {told}, not of {own}; give another file")
    if not lines:
        add_kept(options.rows, {_ROWS_OF: own})


def read_kept(file: Path | None, take: Callable[[Any], None]) -> None:
    """Hand every line of an earlier run to `take`; of no file, or one that is not there yet, none.

    Half a line at the end, which a full disk or a power cut leaves, is removed.
    Raises BadInput for a file of something else: a pipe, a device, lines that `take` cannot use.
    """

    def heed(line: Any) -> None:
        if _ROWS_OF not in line:
            take(line)

    _read(file, heed)


def _read(file: Path | None, take: Callable[[Any], None]) -> None:
    if file is None or not file.exists():
        return
    refuse_special(file)
    try:
        *lines, last = file.read_text("utf-8").split("\n")
        for line in lines:
            take(json.loads(line))
        if last and _is_whole(last):
            take(json.loads(last))
            lines.append(last)
        if last:
            publish_file(file, "".join(f"{line}\n" for line in lines).encode(), READABLE)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(f"{file}: no rows of this benchmark; give another file") from error


def _is_whole(line: str) -> bool:
    """False for the beginning of an object; what does not begin like one is no row of ours."""
    try:
        json.loads(line)
    except ValueError:
        return not line.startswith("{")
    return True


def add_kept(file: Path | None, line: Mapping[str, Any]) -> None:
    """Write a line more, where there is a file. Raises StoreError when it cannot be written."""
    if file is not None:
        with system_errors(f"writing {file}"):
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as opened:
                opened.write(json.dumps(line) + "\n")
