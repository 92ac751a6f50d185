"""JSON schemas at random, of the keywords that people use."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

__all__ = ["random_schema"]

_Schema = dict[str, Any]

_NAMES = (
    "name",
    "age",
    "tags",
    "items",
    "total",
    "note",
    "unit",
    "first name",
    "naïve",
    "a/b",
    "$x",
)
_VALUES = ("red", "green", 3, True, None, 'x"y', "é", 2.5)
_CONSTANTS = ("v1", 7, False, {"a": [1]})
_PATTERNS = ("^[a-z]{2,5}$", r"^\d{3}-\d{4}$", "^(yes|no|maybe)$", "^[A-Z][a-z]*$")
_FORMATS = ("date", "uuid", "email", "ipv4")


_EDGES = {"minimum": -9999, "maximum": 9999}
_SHORT = {"maxLength": 24}
_IN_BOUNDS: dict[str, _Schema] = {
    "string": _SHORT,
    "integer": _EDGES,
    "number": {**_EDGES, "multipleOf": 0.25},
}
"""What leaves an answer of each type an end."""
_KEY = "^[a-z]{1,8}$"


def random_schema(rng: random.Random, depth: int = 3, *, bounded: bool = False) -> _Schema:
    """An object of one to four properties, nested up to `depth` levels, with references to its own parts.

    With `bounded` whatever keeps to the schema has an end: texts, numbers, objects and lists are limited.
    """
    return _Writer(rng, bounded=bounded).document(depth)


class _Writer:
    """Writes one schema, and collects the parts that it refers to."""

    def __init__(self, rng: random.Random, *, bounded: bool) -> None:
        self._rng, self._bounded = rng, bounded
        self._parts: dict[str, _Schema] = {}

    def document(self, depth: int) -> _Schema:
        root = self._object(depth)
        return {**root, "$defs": self._parts} if self._parts else root

    def _object(self, depth: int) -> _Schema:
        rng = self._rng
        names = rng.sample(_NAMES, rng.randint(1, 4))
        found: _Schema = {
            "type": "object",
            "properties": {name: self._any(depth - 1) for name in names},
            "required": [name for name in names if rng.random() < 0.7],
        }
        if self._bounded:
            found["additionalProperties"] = False
        elif rng.random() < 0.8:
            found["additionalProperties"] = rng.choice([False, False, {"type": "integer"}])
        return found

    def _any(self, depth: int) -> _Schema:
        kinds = _LEAVES + _NESTED if depth > 0 else _LEAVES
        return self._rng.choice(kinds)(self, depth)

    def _plain(self, _depth: int) -> _Schema:
        kind = self._rng.choice(["string", "integer", "number", "boolean", "null"])
        return {"type": kind, **self._limits(kind)}

    def _limits(self, kind: str) -> _Schema:
        return _IN_BOUNDS.get(kind, {}) if self._bounded else {}

    def _enum(self, _depth: int) -> _Schema:
        return {"enum": self._rng.sample(_VALUES, self._rng.randint(1, 4))}

    def _const(self, _depth: int) -> _Schema:
        return {"const": self._rng.choice(_CONSTANTS)}

    def _text(self, _depth: int) -> _Schema:
        shortest = self._rng.randint(0, 3)
        bounds = {"minLength": shortest, "maxLength": shortest + self._rng.randint(0, 9)}
        pattern, form = self._rng.choice(_PATTERNS), self._rng.choice(_FORMATS)
        if self._bounded:
            pattern, form = pattern.replace("*", "{0,8}"), form.replace("email", "date")
        ways: tuple[_Schema, ...] = (bounds, {"pattern": pattern}, {"format": form})
        return {"type": "string", **self._rng.choice(ways)}

    def _range(self, _depth: int) -> _Schema:
        low = self._rng.randint(-20, 20)
        kind = self._rng.choice(["integer", "number"])
        edges = {"minimum": low, "maximum": low + self._rng.randint(0, 200)}
        return {"type": kind, **self._limits(kind), **edges}

    def _nullable(self, _depth: int) -> _Schema:
        kind = self._rng.choice(["string", "integer"])
        return {"type": [kind, "null"], **self._limits(kind)}

    def _array(self, depth: int) -> _Schema:
        least = self._rng.randint(0, 2)
        most = least + self._rng.randint(0, 3)
        return {"type": "array", "items": self._any(depth - 1), "minItems": least, "maxItems": most}

    def _tuple(self, depth: int) -> _Schema:
        items = [self._any(depth - 1) for _ in range(self._rng.randint(1, 3))]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}

    def _any_of(self, depth: int) -> _Schema:
        return {"anyOf": [self._any(depth - 1) for _ in range(self._rng.randint(2, 3))]}

    def _map(self, depth: int) -> _Schema:
        values = self._any(depth - 1)
        if not self._bounded:
            return {"type": "object", "additionalProperties": values}
        keyed = {"patternProperties": {_KEY: values}, "additionalProperties": False}
        return {"type": "object", **keyed, "maxProperties": 3}

    def _reference(self, depth: int) -> _Schema:
        name = f"part{len(self._parts)}"
        self._parts[name] = {}  # the name is taken while what it stands for is written
        self._parts[name] = self._any(depth - 1)
        return {"$ref": f"#/$defs/{name}"}


_Maker = Callable[[_Writer, int], _Schema]
_LEAVES: tuple[_Maker, ...] = (
    _Writer._plain,  # noqa: SLF001 a table of its own methods
    _Writer._enum,  # noqa: SLF001
    _Writer._const,  # noqa: SLF001
    _Writer._text,  # noqa: SLF001
    _Writer._range,  # noqa: SLF001
    _Writer._nullable,  # noqa: SLF001
)
_NESTED: tuple[_Maker, ...] = (
    _Writer._object,  # noqa: SLF001
    _Writer._array,  # noqa: SLF001
    _Writer._tuple,  # noqa: SLF001
    _Writer._any_of,  # noqa: SLF001
    _Writer._map,  # noqa: SLF001
    _Writer._reference,  # noqa: SLF001
)
