"""One text is one item, wherever many may be given.

A string is a sequence of letters to Python, so `documents="abc"` would mean three documents.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kdn.errors import BadInput

__all__ = ["as_many", "paths_of", "text_of", "texts_of"]


def as_many(given: object, what: str, *alone: type) -> tuple[Any, ...]:
    """The items of a list, or the one item that stands alone: a text, a path, a mapping, an `alone`.

    Raises BadInput for what is neither, naming it as `what`.
    """
    if isinstance(given, (str, bytes, os.PathLike, Mapping, *alone)):
        return (given,)
    if isinstance(given, Iterable):
        return tuple(given)
    raise BadInput(f"{what} are {_shown(given)}; give a list of them")


def texts_of(given: object, what: str) -> tuple[str, ...]:
    """As `as_many`, where every item must be a text."""
    items: tuple[str, ...] = as_many(given, what)
    for number, item in enumerate(items):
        if not isinstance(item, str):
            raise BadInput(f"{what}: item {number} is {_shown(item)}; it must be a text")
    return items


def paths_of(given: object, what: str) -> tuple[Path, ...]:
    """As `as_many`, where every item must be a path, or the text of one."""
    items = as_many(given, what)
    for number, item in enumerate(items):
        if not isinstance(item, str | os.PathLike):
            raise BadInput(f"{what}: item {number} is {_shown(item)}; it must be a path")
    return tuple(map(Path, items))


def text_of(given: object, what: str) -> str:
    """`given` itself. Raises BadInput when it is no text."""
    if not isinstance(given, str):
        raise BadInput(f"{what} is {_shown(given)}; it must be a text")
    return given


def _shown(given: object) -> str:
    return "None" if given is None else f"a {type(given).__name__}"
