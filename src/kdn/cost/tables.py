"""Numbers that people wrote down: read with their place, refused when missing, unknown or absurd."""

from __future__ import annotations

import datetime as dt
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from kdn.errors import BadInput
from kdn.machine.text import read_text

__all__ = ["PriceTable", "read_table", "shipped"]


def shipped(folder: str) -> tuple[str, ...]:
    """Names of the files of one kind that come with kdn."""
    found = resources.files("kdn.cost") / folder
    return tuple(sorted(f.name[:-5] for f in found.iterdir() if f.name.endswith(".toml")))


def read_table(folder: str, kind: str, name: str | Path) -> PriceTable:
    """A shipped file by name, or a file of one's own. Raises BadInput where there is none."""
    if isinstance(name, str) and name in shipped(folder):
        text = (resources.files("kdn.cost") / folder / f"{name}.toml").read_text("utf-8")
        return _parse(f"{kind} {name}", text)
    path = Path(name)
    if path.suffix != ".toml":
        known = ", ".join(shipped(folder))
        raise BadInput(f"no {kind} {str(name)!r}; there are {known}, or give a .toml file")
    return _parse(f"{kind} {path.stem}", read_text(path))


def _parse(sheet: str, text: str) -> PriceTable:
    try:
        return PriceTable(sheet, "", tomllib.loads(text))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadInput(f"{sheet}: not a TOML file: {error}") from error


class PriceTable:
    """A table of a sheet that knows its place, and at the end what was not asked for."""

    def __init__(self, sheet: str, place: str, values: Mapping[str, Any]) -> None:
        self._sheet, self._place = sheet, place
        self.values = values
        self._taken: set[str] = set()

    def take(self, key: str) -> Any:
        self._taken.add(key)
        return self.values[key]

    def table(self, key: str) -> PriceTable:
        if not isinstance(self.values.get(key), dict):
            raise self._bad(f"[{self._at(key)}] is missing")
        return PriceTable(self._sheet, self._at(key), self.take(key))

    def number(
        self, key: str, default: float | None = None, *, least: float = 0.0, most: float
    ) -> float:
        if key not in self.values:
            if default is None:
                raise self._bad(f"the price {self._at(key)} is missing")
            return default
        value = self.take(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._bad(f"{self._at(key)} = {value!r}: write a number, the unit is in the name")
        if not least <= value <= most:
            raise self._bad(f"{self._at(key)} = {value}: expected {least:g} to {most:g}")
        return float(value)

    def text(self, key: str, default: str | None = None) -> str:
        if key not in self.values and default is not None:
            return default
        value = self.take(key) if key in self.values else None
        if not isinstance(value, str) or not value:
            raise self._bad(f"{self._at(key)} is missing: say where the price is from")
        return value

    def date(self, key: str) -> dt.date:
        value = self.take(key) if key in self.values else None
        if not isinstance(value, dt.date) or isinstance(value, dt.datetime):
            raise self._bad(f"{key} is missing: write the day of the prices, as 2026-11-22")
        return value

    def close(self) -> None:
        unknown = sorted(set(self.values) - self._taken)
        if unknown:
            raise self._bad(
                f"{self._at(unknown[0])} is unknown: a price in a unit that is not known here"
                " would be left out without a word"
            )

    def _at(self, key: str) -> str:
        return f"{self._place}.{key}" if self._place else key

    def _bad(self, what: str) -> BadInput:
        return BadInput(f"{self._sheet}: {what}")
