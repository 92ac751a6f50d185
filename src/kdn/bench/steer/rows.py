"""What is judged and timed, kept in a file line by line, so that a later run goes on where one ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdn.bench.common.kept import add_kept, read_kept
from kdn.bench.steer.items import Half
from kdn.bench.steer.sums import JudgedItem
from kdn.errors import BadInput

__all__ = ["SteerRows"]


class SteerRows:
    """Items by name, and rounds of timing; without a file nothing outlives the run."""

    def __init__(self, file: Path | None) -> None:
        """Raises BadInput for a file that holds something else."""
        self._file = file
        self.model: str | None = None
        """Whose answers were judged and timed; None where no line tells."""
        self._items: dict[str, JudgedItem] = {}
        self.rounds: list[dict[str, float]] = []
        """Seconds to the first token by way, a round each."""
        read_kept(file, self._read)

    def begin(self, model: str) -> None:
        """Write down whose rows follow. Raises BadInput for a file of another model's rows."""
        if self.model is None:
            self.model = model
            add_kept(self._file, {"model": model})
        elif self.model != model:
            raise BadInput(
                f"{self._file} holds rows of {self.model}, not of {model}; give another file"
            )

    def of(self, half: Half) -> list[JudgedItem]:
        """The judged items of a half, in the order in which they were judged first."""
        return [one for one in self._items.values() if one.get("half", "test") == half]

    def item(self, name: str) -> JudgedItem | None:
        """What was judged of an item."""
        return self._items.get(name)

    def keep_item(self, item: JudgedItem) -> None:
        """Of an item the last line counts."""
        self._items[item["name"]] = item
        add_kept(self._file, item)

    def keep_round(self, seconds: dict[str, float]) -> None:
        """One round of every way."""
        self.rounds.append(seconds)
        add_kept(self._file, {"round": seconds})

    def _read(self, line: dict[str, Any]) -> None:
        if "model" in line:
            self.model = str(line["model"])
        elif "round" in line:
            self.rounds.append({str(k): float(v) for k, v in line["round"].items()})
        else:
            self._items[line["name"]] = line | {"arms": dict(line["arms"])}
