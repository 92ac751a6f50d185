"""Draws the pictures of docs/benchmarks again, from the figures in the results: nothing is measured.

python scripts/redraw.py [PAGE...]     all pages, or those of the given names
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from kdn.bench.common.report import draw_figures
from kdn.plot import Figure

FOLDER = Path(__file__).parents[1] / "docs" / "benchmarks"


class Drawn(msgspec.Struct):
    """The part of a result that is drawn."""

    figures: list[Figure] = []


def main(names: Sequence[str]) -> None:
    """Draws."""
    for path in sorted(FOLDER.glob("*.json")):
        if not names or path.stem in names:
            draw_figures(
                msgspec.json.decode(path.read_bytes(), type=Drawn).figures, FOLDER, path.stem
            )


if __name__ == "__main__":
    main(sys.argv[1:])
