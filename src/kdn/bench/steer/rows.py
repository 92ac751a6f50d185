"""What is judged and timed, kept in a file line by line, so that a later run goes on where one ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kdn.bench.steer.items import Half
from kdn.bench.steer.sums import JudgedItem
from kdn.errors import BadInput

__all__ = ["SteerRows"]


class SteerRows:
    """Items by name, and rounds of timing; without a file nothing outlives the run."""

    def __init__(self, file: Path | None) -> None:
        """Raises BadInput for a file that holds something else."""
        self._file = file
        self._items: dict[str, JudgedItem] = {}
        self.rounds: list[dict[str, float]] = []
        """Seconds to the first token by way, a round each."""
        if file is None or not file.exists():
            return
        try:
            for line in file.read_text("utf-8").splitlines():
                self._read(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{file}: no rows of this benchmark; give another file") from error

    def of(self, half: Half) -> list[JudgedItem]:
        """The judged items of a half, in the order in which they were judged first."""
        return [one for one in self._items.values() if one.get("half", "test") == half]

    def item(self, name: str) -> JudgedItem | None:
        """What was judged of an item."""
        return self._items.get(name)

    def keep_item(self, item: JudgedItem) -> None:
        """Of an item the last line counts."""
        self._items[item["name"]] = item
        self._write(item)

    def keep_round(self, seconds: dict[str, float]) -> None:
        """One round of every way."""
        self.rounds.append(seconds)
        self._write({"round": seconds})

    def _read(self, line: dict[str, Any]) -> None:
        if "round" in line:
            self.rounds.append({str(k): float(v) for k, v in line["round"].items()})
        else:
            self._items[line["name"]] = line | {"arms": dict(line["arms"])}

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
