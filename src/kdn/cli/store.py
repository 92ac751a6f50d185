"""kdn store: what is kept and where, whether it is whole, and everything an operator does with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdn.cli.calibrate import calibrate, records_of, show_record
from kdn.cli.grouped import grouped
from kdn.cli.options import HomeOption, JsonOption, output_file, read_settings
from kdn.cli.show import (
    emit,
    progress_bar,
    say,
    size_text,
    table,
    tell,
    time_text,
    watched,
)
from kdn.cli.simulate import simulate
from kdn.cli.store_blocks import compress, copy, move, pin, tell_done, unpin, warm
from kdn.cli.which import SaltOption, TierOption, WhichBlocks, opened
from kdn.machine.files import publishing
from kdn.machine.text import counted

if TYPE_CHECKING:
    from kdn.cost import Ledger
    from kdn.store import Store

__all__ = ["store"]

store = typer.Typer(help="Look after the stored KV.", no_args_is_help=True)
store.command()(calibrate)
store.command()(simulate)


@store.command("stat")
def show_stat(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show how much is stored, and where."""
    from kdn.api.store import price_outlook
    from kdn.store.admin.shapes import stat_shape

    with opened(home) as found:
        stat, ledger = found.stat(), _ledger(found, home)
    records = records_of(read_settings(home).home)
    blends = _blends(home)
    outlook = price_outlook(read_settings(home), stat.tiers)
    if as_json:
        money = {"saved_usd": ledger.saved.value, "spent_usd": ledger.spent.value}
        rest = {"quality": records, "blend": blends, "money": money, "prices": outlook}
        emit(stat_shape(stat) | rest)
        return
    rows = [
        (
            name,
            tier.blocks,
            f"{tier.tokens:,}",
            size_text(tier.size_bytes) if tier.size_bytes or not tier.blocks else "not told",
            _cap(tier.capacity_bytes),
        )
        for name, tier in stat.tiers.items()
    ]
    table("", ("tier", "blocks", "tokens", "size", "cap"), rows)
    for record in records:
        show_record(record)
    if blends:
        table(
            "blended answers",
            (
                "model",
                "tenant",
                "collection",
                "answers",
                "compared",
                "same first token",
                "mean KL",
                "ratio",
            ),
            [tuple(str(value) for value in one.values()) for one in blends],
        )
    if outlook:
        columns = ("tier", "a block pays", "kept unused for")
        paying = [
            (name, "yes" if one["pays"] else "no", _kept(one["keep_s"]))
            for name, one in outlook.items()
        ]
        table("acting on prices, a first block of 256 tokens", columns, paying)
    saved, spent = ledger.saved.value, ledger.spent.value
    tell(f"these blocks have saved {saved:.3g} USD of computing and cost {spent:.3g} USD")


def _kept(seconds: float | None) -> str:
    return "ever" if seconds is None else time_text(seconds)


def _ledger(found: Store, home: Path | None) -> Ledger:
    from kdn.cost import compute_ledger, load_sheet, load_speed

    settings = read_settings(home).cost
    return compute_ledger(
        found.tiers.lives(), load_speed(settings.speed), load_sheet(settings.prices)
    )


def _blends(home: Path | None) -> list[dict[str, Any]]:
    """What the quality guard has found, a model, a tenant and a collection at a time."""
    from kdn.reuse.blend.record import read_records

    settings = read_settings(home)
    return [
        {
            "model": fingerprint[:12],
            "tenant": salt or "-",
            "collection": collection or "-",
            "answers": record.asked,
            "compared": record.samples,
            "agreed": record.agreed,
            "mean_kl": round(sum(record.recent_kl) / max(len(record.recent_kl), 1), 4),
            "ratio": record.ratio if record.ratio is not None else settings.blend.ratio,
        }
        for (fingerprint, salt), records in read_records(settings.guard_file).items()
        for collection, record in records.items()
    ]


def _cap(capacity_bytes: int | None) -> str:
    return "none" if capacity_bytes is None else size_text(capacity_bytes)


@store.command()
def quota(
    *,
    salt: Annotated[str | None, typer.Option("--salt", help="The tenant to decide about.")] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=0, help="The most bytes it may hold in a tier.")
    ] = None,
    priority: Annotated[
        int | None, typer.Option("--priority", help="Lower goes first; from the next opening on.")
    ] = None,
    forget: Annotated[
        bool, typer.Option("--forget", help="Leave the tenant to the settings again.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what each tenant holds in each tier and may hold, or decide about one."""
    from kdn.errors import BadInput
    from kdn.store.admin.shapes import quota_shape
    from kdn.store.tenants.tenancy import TenantLimits

    decides = limit is not None or priority is not None
    if salt is None and (forget or decides):
        raise BadInput("say about which tenant: --salt NAME")
    if forget and decides:
        raise BadInput("--forget drops what was decided: leave out --limit and --priority")
    with opened(home) as found:
        if salt is not None and forget:
            found.tenancy.limits.forget(salt)
        elif salt is not None and decides:
            found.tenancy.limits.decide(salt, TenantLimits(limit, priority))
        shape = quota_shape(found)
    if as_json:
        emit(shape)
        return
    rows = [
        (salt or "(none)", tier, size_text(held), _cap(one["limit_bytes"]))
        for salt, one in shape.items()
        for tier, held in one["held_bytes"].items()
    ]
    table("", ("tenant", "tier", "held", "quota"), rows)


@store.command()
def verify(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Read everything and check it; damaged blocks are put out of use. Exit code 1 if there were."""
    with (
        opened(home) as found,
        watched(tuple(found.tiers.durable.block_keys()), "verifying") as each,
    ):
        report = found.verify(each)
    if as_json:
        shape = {
            "blocks": report.blocks,
            "size_bytes": report.size_bytes,
            "corrupt": report.corrupt,
        }
        emit(shape)
    else:
        tell(
            f"{counted(report.blocks, 'block')}, {size_text(report.size_bytes)}: "
            f"{len(report.corrupt)} damaged"
        )
    if report.corrupt:
        say("kdn: the damaged blocks were put aside and will be computed again when needed")
        raise typer.Exit(1)


@store.command()
@grouped
def clear(
    *,
    which: WhichBlocks,
    tier: TierOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Throw stored KV away, all or some. Documents stay; KV is computed again when needed."""
    from kdn.store.admin.manage import forget

    with which.picked(tier) as (found, keys):
        if not yes:
            typer.confirm(f"Forget {counted(len(keys), 'block')}?", abort=True, err=True)
        if tier is None and len(keys) == len(found.index.entries()):
            found.clear()
            forgotten = len(keys)
        else:
            forgotten = forget(found, keys, tier).blocks
    if as_json:
        emit({"forgotten": forgotten})
    else:
        tell(f"forgot {counted(forgotten, 'block')}")


for command in (warm, pin, unpin, copy, move, compress):
    store.command()(command)


@store.command()
@grouped
def export(
    file: Annotated[Path, typer.Argument(help="The bundle to write.", callback=output_file)],
    *,
    which: WhichBlocks,
    as_json: JsonOption = False,
) -> None:
    """Write blocks to one portable file."""
    from kdn.errors import BadInput
    from kdn.store.admin.bundle import export_blocks

    with which.picked() as (found, keys):
        if not keys:  # a file that is there is not replaced by nothing
            raise BadInput("there are no such blocks: nothing is exported")
        with publishing(file) as bundle, watched(keys, "exporting") as each:
            done = export_blocks(found, each, bundle)
    tell_done(done, "exported", as_json)


@store.command("import")
def take_in(
    file: Annotated[Path, typer.Argument(help="A bundle.", exists=True, dir_okay=False)],
    *,
    salt: SaltOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take in the blocks of a bundle, each checked whole before it is kept."""
    from kdn.store.admin.bundle import import_blocks

    with (
        opened(home) as found,
        progress_bar() as bar,
        bar.open(file, "rb", description="importing") as bundle,
    ):
        done = import_blocks(found, bundle, salt)
    tell_done(done, "imported", as_json)
