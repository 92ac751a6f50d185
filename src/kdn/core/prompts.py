"""Prompts are segments of token ids with a role each; and what callers give is read by one rule everywhere:
one text is one item where many may be given, and JSON is what every reader understands alike."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from kdn.core.names import TokenIds
from kdn.errors import BadInput

__all__ = [
    "Prompt",
    "Role",
    "Segment",
    "UnsoundJson",
    "as_many",
    "paths_of",
    "read_sound_json",
    "text_of",
    "texts_of",
]

_SHOWN = 40


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


class UnsoundJson(ValueError):
    """A JSON text that readers understand differently; `key` is the key that stands twice, if one does."""

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


def read_sound_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises UnsoundJson for a key that stands twice or a number that is not finite, JSONDecodeError for
    what is no JSON, another ValueError for a number of thousands of digits, RecursionError.
    """
    return json.loads(
        text, object_pairs_hook=_object, parse_constant=_no_number, parse_float=_finite
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        shown = repr(twice[:_SHOWN])
        raise UnsoundJson(f"the key {shown} stands twice in one object; give it once", twice)
    return found


def _no_number(word: str) -> NoReturn:
    raise UnsoundJson(f"{word} is no number in JSON; give a finite number, or null")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise UnsoundJson(f"{digits[:_SHOWN]} is beyond the largest number (1.8e308); give less")
    return number


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
