"""JSON that every reader understands alike: no key twice in one object, and finite numbers only.

Python's own reader keeps the last of two values, and takes NaN and Infinity, which no JSON has.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

__all__ = ["UnsoundJson", "read_sound_json"]

_SHOWN = 40


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
        names = [name for name, _ in pairs]
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise UnsoundJson(
            f"the key {_short(twice)} stands twice in one object; give it once", twice
        )
    return found


def _no_number(word: str) -> NoReturn:
    raise UnsoundJson(f"{word} is no number in JSON; give a finite number, or null")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise UnsoundJson(f"{digits[:_SHOWN]} is beyond the largest number (1.8e308); give less")
    return number


def _short(name: str) -> str:
    return repr(name if len(name) <= _SHOWN else name[:_SHOWN] + "...")
