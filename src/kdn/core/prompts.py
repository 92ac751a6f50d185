"""Prompts are segments of token ids with a role each; one text is one item where many may be given."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from kdn.core.names import TokenIds
from kdn.errors import BadInput

__all__ = ["Prompt", "Role", "Segment", "as_many", "paths_of", "text_of", "texts_of"]


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
        _refuse_half_characters(item, f"{what}: item {number}")
    return items


def paths_of(given: object, what: str) -> tuple[Path, ...]:
    """As `as_many`, where every item must be a path, or the text of one."""
    items = as_many(given, what)
    for number, item in enumerate(items):
        if not isinstance(item, str | os.PathLike):
            raise BadInput(f"{what}: item {number} is {_shown(item)}; it must be a path")
        if not str(item).strip() or "\0" in str(item) or not _is_file_name(item):
            raise BadInput(
                f"{what}: item {number} is {str(item)!r}; it must name a file or a folder"
            )
    return tuple(map(Path, items))


def _is_file_name(path: str | os.PathLike[str]) -> bool:
    """File names may be any bytes; halves of characters stand for those that are no UTF-8."""
    try:
        return bool(os.fsencode(path))
    except UnicodeEncodeError:
        return False


def text_of(given: object, what: str) -> str:
    """`given` itself. Raises BadInput when it is no text."""
    if not isinstance(given, str):
        raise BadInput(f"{what} is {_shown(given)}; it must be a text")
    _refuse_half_characters(given, what)
    return given


def _refuse_half_characters(text: str, what: str) -> None:
    """No tokenizer, file or wire takes a lone half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadInput(
            f"{what} holds half a character (U+{ord(text[error.start]):04X}) at {error.start}; decode its "
            'bytes with errors="replace"'
        ) from error


def _shown(given: object) -> str:
    return "None" if given is None else f"a {type(given).__name__}"


class Role(StrEnum):
    """What a run of tokens is for."""

    PRELUDE = "prelude"
    DOCUMENT = "document"
    HISTORY = "history"
    INSTRUCTION = "instruction"
    QUESTION = "question"


@dataclass(frozen=True)
class Segment:
    """A run of tokens with one role; `source` names the document it came from, if any."""

    role: Role
    token_ids: TokenIds
    source: str | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class Prompt:
    """Segments in order. Tokens are never joined as text and cut again."""

    segments: tuple[Segment, ...]

    @cached_property
    def token_ids(self) -> TokenIds:
        return tuple(chain.from_iterable(segment.token_ids for segment in self.segments))

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    def spans(self) -> Iterator[tuple[Segment, int, int]]:
        """Each segment with its half-open range of positions."""
        start = 0
        for segment in self.segments:
            stop = start + segment.num_tokens
            yield segment, start, stop
            start = stop
