"""kdn cost: what computing costs here."""

from __future__ import annotations

from typing import Annotated

import typer

from kdn.cli.options import (
    DeviceOption,
    DtypeOption,
    HomeOption,
    Int8Option,
    JsonOption,
    ModelChoice,
    ModelOption,
)
from kdn.cli.show import emit, table, time_text

__all__ = ["cost"]

cost = typer.Typer(help="What computing and keeping cost.", no_args_is_help=True)


@cost.callback()
def describe() -> None:
    """What computing and keeping cost."""


@cost.command()
def fit(
    *,
    model: ModelOption = "smollm2-135m",
    home: HomeOption = None,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each point.")] = 3,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    int8: Int8Option = False,
    as_json: JsonOption = False,
) -> None:
    """Measure how long prompts take on this machine, and keep it for scheduling and estimates."""
    with ModelChoice(model, home, device, dtype, int8).open() as kdn:
        found = kdn.fit_jct(repeats=repeats)
        name = kdn.name
    if as_json:
        emit({"model": name, "jct": found})
        return
    points = ((32, 0), (1000, 0), (32, 1000), (4000, 0), (32, 4000))
    rows = [(new, cached, time_text(found.seconds(new, cached))) for new, cached in points]
    table("", ("to compute", "reused", "takes"), rows)
    typer.echo(f"median error over the measured grid: {100 * (found.error or 0):.1f} %")
