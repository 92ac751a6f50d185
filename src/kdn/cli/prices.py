"""Options of `kdn cost`, and the price sheet that they name."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdn.cli.options import output_file
from kdn.cli.show import say

if TYPE_CHECKING:
    from kdn.cost import PriceSheet

__all__ = [
    "PlotOption",
    "PricesOption",
    "SloOption",
    "SpeedOption",
    "TierOption",
    "TraceOption",
    "read_prices",
]

PricesOption = Annotated[
    str, typer.Option(help="A price sheet: aws-h100, gcp-h100, own-h100, ... or a .toml file.")
]
SpeedOption = Annotated[
    str, typer.Option(help="A model on a machine: llama-8b-h100, ... or a .toml file.")
]
TraceOption = Annotated[
    Path,
    typer.Option(
        "--trace", exists=True, dir_okay=False, help="Requests, .jsonl or .csv, or .gz of one."
    ),
]
TierOption = Annotated[str | None, typer.Option(help="A tier of the sheet; all by default.")]
PlotOption = Annotated[
    Path | None, typer.Option(help="Draw it into this file.", callback=output_file)
]
SloOption = Annotated[
    float | None, typer.Option(min=0, max=1e9, help="Seconds to the first token.")
]


def read_prices(name: str) -> PriceSheet:
    """The sheet; what is wrong with its age or basis is a note on stderr."""
    from kdn.cost import load_sheet

    sheet = load_sheet(name)
    warning = sheet.warning(dt.datetime.now(tz=dt.UTC).date())
    for line in (warning, sheet.note):
        if line:
            say(f"note: {line}")
    return sheet
