"""Finished pieces of a long benchmark, a line of JSON each: a run that is stopped goes on after the last."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kdn.errors import BadInput

__all__ = ["add_kept", "read_kept"]


def read_kept(file: Path | None, take: Callable[[Any], None]) -> None:
    """Hand every line of an earlier run to `take`; of no file, or one that is not there yet, none.

    Raises BadInput for a file of something else: lines that `take` cannot use.
    """
    if file is None or not file.exists():
        return
    try:
        for line in file.read_text("utf-8").splitlines():
            take(json.loads(line))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(f"{file}: no rows of this benchmark; give another file") from error


def add_kept(file: Path | None, line: Mapping[str, Any]) -> None:
    """Write a line more, where there is a file."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as opened:
            opened.write(json.dumps(line) + "\n")
