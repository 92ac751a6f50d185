"""Which regular expressions of a stranger's tokenizer are run here: those whose time is known to be small.

The library searches by backtracking.  `(a+)+b` takes time exponential in the text, `a*a*a*b` a high power
of it.  A plain pattern, as nearly all published tokenizers have, takes at most time quadratic in a run of
like characters.  Others may be harmless too; they run where they can be stopped (`encode_process`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["expansion_of", "is_plain_pattern", "patterns_in"]

_MAX_PATTERN_CHARS = 4_000
_MAX_LOOSE = 6
"""Elements of one alternative that may match in several ways."""
_MAX_BEFORE = 1
"""Unbounded repetitions that a failure of what follows them may try again."""
_WIDE = 16
"""A repetition of so many counts is as good as unbounded."""

_QUANTIFIER = re.compile(r"(?:([*+?])|\{(\d{1,4})(?:(,)(\d{0,4}))?\})")
_GROUP = re.compile(r"\(\?(?:[imsIMS]*(?:-[imsIMS]+)?:|<?[=!]|>|<[A-Za-z]\w*>)|\((?!\?)")
_ESCAPE = re.compile(
    r"\\(?:[pP]\{\^?\w+\}|x\{?[0-9A-Fa-f]+\}?|u[0-9A-Fa-f]{4}|[^1-9kgKQEXxuUpP])", re.DOTALL
)


@dataclass
class _Piece:
    """What is known of a part of a pattern."""

    loose: int = 0
    """Elements that match in several ways."""
    unbounded: int = 0
    before: int = 0
    """Unbounded repetitions in front of an element that can fail, at most."""
    has_choice: bool = False
    size: int = 0
    """Characters that it holds when repetitions are written out."""


class _NotPlain(Exception):
    """Too much, or written in a way that is not read here."""


def is_plain_pattern(pattern: str) -> bool:
    """Is its time surely small? False where that is not known."""
    if len(pattern) > _MAX_PATTERN_CHARS:
        return False
    try:
        _, end = _alternatives(pattern, 0, 0)
    except (_NotPlain, RecursionError):
        return False
    return end == len(pattern)


def _alternatives(text: str, at: int, depth: int) -> tuple[_Piece, int]:
    """The piece up to the bracket that closes it, or the end."""
    if depth > 8:
        raise _NotPlain
    whole, count = _Piece(), 0
    while True:
        one, at = _sequence(text, at, depth)
        count += 1
        whole.loose = max(whole.loose, one.loose)
        whole.unbounded = max(whole.unbounded, one.unbounded)
        whole.before = max(whole.before, one.before)
        whole.size += one.size
        if at == len(text) or text[at] == ")":
            whole.has_choice = count > 1
            return whole, at
        at += 1


def _sequence(text: str, at: int, depth: int) -> tuple[_Piece, int]:
    found = _Piece()
    while at < len(text) and text[at] not in "|)":
        element, at = _element(text, at, depth)
        least, most, at = _counts(text, at)
        if most > 1 and (element.loose or element.has_choice):
            raise _NotPlain
        if least > 0 or element.before:
            found.before = max(found.before, found.unbounded + element.before)
        if element.unbounded and least > 0:
            found.before = max(found.before, found.unbounded)
        found.loose += element.loose + (least != most) + element.has_choice
        found.unbounded += element.unbounded + (most - least > _WIDE)
        found.size += element.size * max(least, 1)
        if (
            found.size > _MAX_PATTERN_CHARS
            or found.loose > _MAX_LOOSE
            or found.before > _MAX_BEFORE
        ):
            raise _NotPlain
    return found, at


def _element(text: str, at: int, depth: int) -> tuple[_Piece, int]:
    if text[at] == "[":
        return _Piece(size=1), _after_class(text, at)
    if text[at] == "\\":
        escape = _ESCAPE.match(text, at)
        if escape is None:
            raise _NotPlain
        return _Piece(size=1), escape.end()
    if text[at] == "(":
        opening = _GROUP.match(text, at)
        if opening is None:
            raise _NotPlain
        inner, end = _alternatives(text, opening.end(), depth + 1)
        if end == len(text):
            raise _NotPlain
        return inner, end + 1
    if text[at] in "*+?":
        raise _NotPlain
    return _Piece(size=1), at + 1


def _counts(text: str, at: int) -> tuple[int, int, int]:
    """How often at least and at most the element before `at` is repeated, and where that ends."""
    found = _QUANTIFIER.match(text, at)
    if found is None:
        return 1, 1, at
    sign, low, comma, high = found.groups()
    if sign is not None:
        least, most = {"*": (0, 1 << 30), "+": (1, 1 << 30), "?": (0, 1)}[sign]
    else:
        least = int(low)
        most = least if comma is None else int(high) if high else 1 << 30
    end = found.end()
    if sign is not None and text[end : end + 1] in ("+", "?") and text[end : end + 1]:
        end += 1  # possessive or reluctant
    if _QUANTIFIER.match(text, end) or least > 1000 or most < least:
        raise _NotPlain
    return least, most, end


def _after_class(text: str, at: int) -> int:
    """Behind the bracket that closes a set of characters; sets may hold sets."""
    depth, start = 0, at
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] == "[":
            depth, start = depth + 1, at
        elif text[at] == "]":
            if at == start + 1 or text[start + 1 : at] == "^":
                raise _NotPlain
            depth -= 1
            if depth == 0:
                return at + 1
        at += 1
    raise _NotPlain


def patterns_in(part: Any) -> Iterator[str]:
    """The regular expressions in a part of a tokenizer.json."""
    if isinstance(part, Mapping):
        pattern = part.get("pattern")
        if isinstance(pattern, Mapping) and isinstance(pattern.get("Regex"), str):
            yield pattern["Regex"]
        for inner in part.values():
            yield from patterns_in(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from patterns_in(inner)


def expansion_of(part: Any) -> int:
    """How many times longer the replacements and additions in it can make a text, at most."""
    grown = 1
    if isinstance(part, Mapping):
        for name in ("content", "prepend", "replacement"):
            if isinstance(part.get(name), str):
                grown *= max(1, len(part[name]))
        for inner in part.values():
            grown *= expansion_of(inner)
    elif isinstance(part, list):
        for inner in part:
            grown *= expansion_of(inner)
    return grown
