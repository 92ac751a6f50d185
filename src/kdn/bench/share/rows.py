"""What was measured, kept line by line, so that a run which is stopped goes on where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from kdn.bench.common.kept import add_kept, read_kept
from kdn.errors import BadInput
from kdn.reuse.share import PairRecord

__all__ = ["ShareRows"]


class ShareRows:
    """Items of pairs, profiles and rounds of timing; without a file nothing outlives the run."""

    def __init__(self, file: Path | None) -> None:
        """Raises BadInput for a file that holds something else."""
        self._file = file
        self.items: dict[tuple[str, str], dict[str, Any]] = {}
        """By pair and item: `arms`, each with kl, nll, right and work."""
        self.profiles: dict[str, list[dict[str, Any]]] = {}
        """By pair, the points of its frontier on the profile's half."""
        self.records: dict[str, PairRecord] = {}
        """By pair, its whole profile, from which arms follow; its fingerprints are those of that day."""
        self._weights: dict[str, str] = {}
        """By pair, what its rows were measured of."""
        self.rounds: list[dict[str, Any]] = []
        """Milliseconds to the first token by way, a round each."""
        read_kept(file, self._read)

    def of(self, pair: str) -> list[dict[str, Any]]:
        """The items of a pair."""
        return [line for (name, _), line in self.items.items() if name == pair]

    def profile_of(self, pair: str) -> list[dict[str, Any]]:
        """The frontier of a pair, also where the name is that of its lengthened contexts."""
        return self.profiles.get(pair.split(", ", maxsplit=1)[0], [])

    def refuse_others(self, pair: str, weights: str) -> None:
        """Raises BadInput for rows of a pair of other weights or contexts: they would be mixed."""
        if self._weights.get(pair, weights) != weights:
            raise BadInput(
                f"{self._file} holds rows of {pair} that were measured of other weights, or with --quick;"
                " give another file"
            )

    @property
    def pairs(self) -> list[str]:
        """Those that anything is known of."""
        return list(dict.fromkeys([*self.profiles, *(name for name, _ in self.items)]))

    def keep(self, line: dict[str, Any]) -> None:
        """A line more, in memory and in the file."""
        self._read(line)
        add_kept(self._file, line)

    def _read(self, line: dict[str, Any]) -> None:
        if "round" in line:
            self.rounds.append(line | {"length": int(line["length"])})
        elif "profile" in line:
            self.profiles[line["pair"]] = list(line["profile"])
            self._weights[line["pair"]] = str(line["weights"])
            if "record" in line:
                self.records[line["pair"]] = msgspec.convert(line["record"], PairRecord)
        else:
            self.items[line["pair"], line["item"]] = line | {"arms": dict(line["arms"])}
