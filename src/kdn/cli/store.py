"""kdn store: what is kept, whether it is whole, and throwing it away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdn.cli.options import HomeOption, JsonOption, read_settings
from kdn.cli.show import emit, say, size_text, table
from kdn.cli.simulate import simulate

if TYPE_CHECKING:
    from kdn.cost import Ledger
    from kdn.store import Store, StoreStat

__all__ = ["store"]

store = typer.Typer(help="Look after the stored KV.", no_args_is_help=True)
store.command()(simulate)


@contextmanager
def _opened(home: Path | None) -> Iterator[Store]:
    """The store of this home folder, without any model."""
    from kdn.store import open_store

    config = read_settings(home)
    with open_store(
        config.store_folder,
        memory_bytes=config.store.memory_bytes,
        disk_bytes=config.store.disk_bytes,
        policy=config.store.policy,
    ) as found:
        yield found


@store.command("stat")
def show_stat(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show how much is stored, and where."""
    with _opened(home) as found:
        stat, ledger = found.stat(), _ledger(found, home)
    if as_json:
        money = {"saved_usd": ledger.saved.value, "spent_usd": ledger.spent.value}
        emit(_shape(stat) | {"money": money})
        return
    rows = [
        (
            name,
            tier.blocks,
            f"{tier.tokens:,}",
            size_text(tier.size_bytes),
            _cap(tier.capacity_bytes),
        )
        for name, tier in stat.tiers.items()
    ]
    table("", ("tier", "blocks", "tokens", "size", "cap"), rows)
    saved, spent = ledger.saved.value, ledger.spent.value
    print(f"these blocks have saved {saved:.3g} USD of computing and cost {spent:.3g} USD")


def _ledger(found: Store, home: Path | None) -> Ledger:
    from kdn.cost import close_books, load_sheet, load_speed

    settings = read_settings(home).cost
    return close_books(found.lives(), load_speed(settings.speed), load_sheet(settings.prices))


def _cap(capacity_bytes: int | None) -> str:
    return "none" if capacity_bytes is None else size_text(capacity_bytes)


def _shape(stat: StoreStat) -> dict[str, Any]:
    return {
        "blocks": stat.blocks,
        "tiers": {
            name: {
                "blocks": tier.blocks,
                "tokens": tier.tokens,
                "size_bytes": tier.size_bytes,
                "capacity_bytes": tier.capacity_bytes,
            }
            for name, tier in stat.tiers.items()
        },
    }


@store.command()
def verify(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Read everything and check it; damaged blocks are put out of use. Exit code 1 if there were."""
    with _opened(home) as found:
        report = found.verify()
    if as_json:
        shape = {
            "blocks": report.blocks,
            "size_bytes": report.size_bytes,
            "corrupt": report.corrupt,
        }
        emit(shape)
    else:
        typer.echo(
            f"{report.blocks} blocks, {size_text(report.size_bytes)}: {len(report.corrupt)} damaged"
        )
    if report.corrupt:
        say("kdn: the damaged blocks were put aside and will be computed again when needed")
        raise typer.Exit(1)


@store.command()
def clear(
    home: HomeOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Throw away all stored KV. Documents stay; their KV is computed again when needed."""
    with _opened(home) as found:
        before = found.stat()
        if not yes:
            typer.confirm(f"Forget {before.blocks} blocks?", abort=True, err=True)
        found.clear()
    if as_json:
        emit({"forgotten": before.blocks})
    else:
        typer.echo(f"forgot {before.blocks} blocks")
