"""kdn store warm, pin, unpin, copy, move, compress: what is done to the blocks that options name."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from kdn.cli.grouped import grouped
from kdn.cli.options import JsonOption
from kdn.cli.show import counting, emit, say, size_text, tell, watched
from kdn.cli.which import AllOption, WhichBlocks
from kdn.errors import BadInput
from kdn.machine.text import counted

if TYPE_CHECKING:
    from kdn.store import Store
    from kdn.store.admin.manage import Done

__all__ = ["compress", "copy", "move", "pin", "tell_done", "unpin", "warm"]


def tell_done(done: Done, what: str, as_json: bool) -> None:
    """What was done to how many blocks, and how many were missing."""
    if as_json:
        emit(asdict(done))
        return
    tell(f"{what} {counted(done.blocks, 'block')}, {size_text(done.size_bytes)}")
    if done.missing:
        say(
            f"kdn: without {counted(done.missing, 'block')}: gone meanwhile (dropped, or evicted by another"
            " process), not whole, or in a tier that does not answer"
        )


def _count(blocks: int, what: str, as_json: bool) -> None:
    emit({"blocks": blocks}) if as_json else tell(f"{what} {counted(blocks, 'block')}")


def _lasting(store: Store, to: str) -> str:
    """The name of a tier that is there. Raises BadInput for one whose blocks end with this command."""
    if not store.tiers.named(to).outlives_process:
        others = ", ".join(tier.name for tier in store.tiers if tier.outlives_process)
        raise BadInput(
            f"--to {to}: the {to} tier of this command ends with it; name one that stays ({others}). A"
            " running server takes blocks into its own memory by POST /v1/store/copy"
        )
    return to


@grouped
def warm(
    *,
    which: WhichBlocks,
    as_json: JsonOption = False,
) -> None:
    """Fetch blocks from tiers across the network onto this machine's disk, before they are asked for."""
    from kdn.store.admin.manage import warm as bring

    with which.picked() as (found, keys), counting(len(keys), "warming") as step:
        done = bring(found, keys, step)
    tell_done(done, "warmed", as_json)


@grouped
def pin(
    *,
    which: WhichBlocks,
    everything: AllOption = False,
    seconds: Annotated[
        float | None,
        typer.Option("--for", min=0, max=1e10, help="Seconds; without it until unpinned."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Keep blocks from being evicted, by any kdn on this store."""
    from kdn.clock import SystemClock

    with which.changed(everything=everything) as (found, keys):
        found.tenancy.persistent_pins.pin(
            keys, None if seconds is None else SystemClock().wall() + seconds
        )
    _count(len(keys), "pinned", as_json)


@grouped
def unpin(
    *,
    which: WhichBlocks,
    everything: AllOption = False,
    as_json: JsonOption = False,
) -> None:
    """Let pinned blocks be evicted again."""
    with which.changed(everything=everything) as (found, keys):
        count = found.tenancy.persistent_pins.unpin(keys)
    _count(count, "unpinned", as_json)


@grouped
def copy(
    to: Annotated[str, typer.Option("--to", help="The tier that is to have them too; not memory.")],
    *,
    source: Annotated[str | None, typer.Option("--from", help="The tier to read.")] = None,
    which: WhichBlocks,
    everything: AllOption = False,
    as_json: JsonOption = False,
) -> None:
    """Put blocks into another tier too."""
    from kdn.store.admin.manage import copy as carry

    with (
        which.changed(source, everything=everything) as (found, keys),
        watched(keys, "copying") as each,
    ):
        done = carry(found, each, _lasting(found, to), source)
    tell_done(done, "copied", as_json)


@grouped
def move(
    to: Annotated[str, typer.Option("--to", help="The tier that is to have them; not memory.")],
    source: Annotated[str, typer.Option("--from", help="The tier that they leave.")],
    *,
    which: WhichBlocks,
    everything: AllOption = False,
    as_json: JsonOption = False,
) -> None:
    """Put blocks into another tier, and out of the one they are in."""
    from kdn.store.admin.manage import move as carry

    with (
        which.changed(source, everything=everything) as (found, keys),
        watched(keys, "moving") as each,
    ):
        done = carry(found, each, _lasting(found, to), source)
    tell_done(done, "moved", as_json)


@grouped
def compress(
    codec: Annotated[str, typer.Argument(help="A lossless codec, as `none`.")],
    *,
    which: WhichBlocks,
    everything: AllOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write blocks again with another codec."""
    from kdn.store.admin.manage import compress as rewrite

    with which.changed(everything=everything) as (found, keys), watched(keys, "rewriting") as each:
        done = rewrite(found, each, codec)
    tell_done(done, "rewrote", as_json)
