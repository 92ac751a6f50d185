"""kdn share: what siblings may share of what they have read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdn.cli.commands import Commands
from kdn.cli.options import (
    AdapterOption,
    DeviceOption,
    DtypeOption,
    HomeOption,
    JsonOption,
    ModelChoice,
    ModelOption,
    output_file,
)
from kdn.cli.show import emit, progress_bar, say, table
from kdn.machine.files import readable_folder
from kdn.machine.text import counted, read_json_lines

if TYPE_CHECKING:
    from kdn.api import Kdn
    from kdn.calibration.share_profile import PairSide
    from kdn.reuse.share import PairRecord
    from kdn.reuse.share.pairs import WayTimes

__all__ = ["app"]

app = typer.Typer(
    cls=Commands, no_args_is_help=True, help="What siblings may share of what they have read."
)


@app.callback()
def share() -> None:
    """What siblings may share of what they have read."""


@app.command()
def profile(
    *,
    sender: Annotated[
        str,
        typer.Option(help="Whose KV is used: `base`, an adapter, or another model's name or path."),
    ],
    receiver: Annotated[str, typer.Option(help="Who uses it: `base` or an adapter.")],
    data: Annotated[
        Path,
        typer.Option(exists=True, dir_okay=False, help="JSONL with context, question and answer."),
    ],
    model: ModelOption = "smollm2-135m",
    adapter: AdapterOption = None,
    contexts: Annotated[
        int, typer.Option(min=1, help="So many lines are measured; the others fit the map.")
    ] = 50,
    step: Annotated[int, typer.Option(min=1, help="Groups begin at every so many layers.")] = 2,
    plot: Annotated[
        Path | None, typer.Option(callback=output_file, help="A picture of the frontier.")
    ] = None,
    home: HomeOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a pair: groups of layers, rows and the linear map, by work and by what they lose.

    Killed and started again, it goes on where it was.
    """
    from kdn.calibration.share_profile import default_choices
    from kdn.calibration.share_run import ShareQuestion, item_of, profile_pair
    from kdn.clock import SystemClock

    asked = read_json_lines(data, ShareQuestion)
    choice = ModelChoice(model, home, device, dtype, adapters=tuple(adapter or ()))
    with choice.open() as kdn, progress_bar() as bar:
        items = [item_of(one, kdn.model) for one in asked]
        measured, rest = items[:contexts], [one.context for one in items[contexts:]]
        task = bar.add_task("", total=None)
        record = profile_pair(
            _side(kdn, sender),
            _side(kdn, receiver),
            measured,
            list(dict.fromkeys(rest)),
            default_choices(kdn.model.decoder.config.num_layers, step),
            kdn.calibration.shares,
            lambda what, done, of: bar.update(task, description=what, completed=done, total=of),
            SystemClock(),
        )
        path = kdn.calibration.shares.folder(record.sender, record.receiver)
    if plot is not None:
        _draw(record, plot)
    if as_json:
        emit(record)
        return
    _show(record)
    say(f"kept in {path}")


@app.command("list")
def list_profiles(home: HomeOption = None, *, as_json: JsonOption = False) -> None:
    """The pairs that were measured, with their frontiers."""
    from kdn.cli.options import read_settings
    from kdn.reuse.share import ShareRecords

    folder = read_settings(home).home
    readable_folder(folder / "share")
    records = ShareRecords(folder).all()
    if as_json:
        emit({"pairs": records})
        return
    for record in records:
        _show(record)
    if not records:
        say("no pair was measured here; run: kdn share profile")


def _side(kdn: Kdn, name: str) -> PairSide:
    """The base, one of its adapters, or another model. Raises BadInput, UnknownModel."""
    from kdn.api.load import load, prepared
    from kdn.calibration.share_profile import PairSide

    adapters = kdn.model.adapters
    if name == "base" or name in adapters:
        return PairSide(name, kdn.model, kdn.parts.attention, adapters.get(name))
    # With the kernels that a server computes it with: they are a part of its name.
    other, attention = load(
        name,
        kdn.config,
        kdn.parts.clock,
        prepared([name], kdn.config, kdn.trace),
        device=str(kdn.model.decoder.device),
        dtype=str(kdn.model.decoder.dtype).removeprefix("torch."),
        quantization="none",
        adapters=None,
    )
    return PairSide(name, other, attention)


def _show(record: PairRecord) -> None:
    """The frontier as a table."""
    rows = [
        (
            point.choice.name,
            f"{point.work:.0%}",
            f"{point.kl:.3g}",
            f"{point.nll - record.own_nll:+.3f}",
            _times(point.times),
        )
        for point in record.usable("best")
    ]
    title = (
        f"{record.receiver_name} over KV of {record.sender_name}: {counted(record.contexts, 'context')} of"
        f" {counted(record.context_tokens, 'token')}"
    )
    table(title, ["way", "work", "KL (nats)", "NLL change", "ms (tokens)"], rows)
    if record.prefill_times:
        say(f"its own prefill takes {_times(record.prefill_times)}")


def _times(times: WayTimes) -> str:
    """`31 (256), 80 (1024)`: milliseconds, and the tokens that they are for."""
    return ", ".join(f"{1e3 * seconds:.0f} ({tokens})" for tokens, seconds in times)


def _draw(record: PairRecord, plot: Path) -> None:
    from kdn.plot import Figure, draw

    kinds = {"groups of layers": record.usable("published"), "best": record.usable("best")}
    lines = {name: [(p.work, p.kl) for p in points] for name, points in kinds.items() if points}
    title = f"{record.receiver_name} over KV of {record.sender_name}"
    draw(Figure(title, "work, as a share of a prefill", "KL (nats)", lines), plot)
