"""kdn store warm, pin, unpin, copy, move, compress: what is done to the blocks that options name."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from kdn.cli.options import HomeOption, JsonOption
from kdn.cli.show import emit, say, size_text, tell
from kdn.cli.which import (
    AllOption,
    FingerprintOption,
    KeyOption,
    SaltOption,
    picked,
    refuse_all,
)

if TYPE_CHECKING:
    from kdn.store.admin.manage import Done

__all__ = ["compress", "copy", "move", "pin", "tell_done", "unpin", "warm"]


def tell_done(done: Done, what: str, as_json: bool) -> None:
    """What was done to how many blocks, and how many were missing."""
    if as_json:
        emit(asdict(done))
        return
    tell(f"{what} {done.blocks} blocks, {size_text(done.size_bytes)}")
    if done.missing:
        say(f"kdn: {done.missing} blocks were not there any more, or not whole")


def _count(blocks: int, what: str, as_json: bool) -> None:
    emit({"blocks": blocks}) if as_json else tell(f"{what} {blocks} blocks")


def warm(
    *,
    key: KeyOption = None,
    salt: SaltOption = None,
    fingerprint: FingerprintOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch blocks from tiers across the network onto this machine's disk, before they are asked for."""
    from kdn.store.admin.manage import warm as bring

    with picked(home, key, salt, fingerprint) as (found, keys):
        tell_done(bring(found, keys), "warmed", as_json)


def pin(
    *,
    key: KeyOption = None,
    salt: SaltOption = None,
    fingerprint: FingerprintOption = None,
    everything: AllOption = False,
    seconds: Annotated[
        float | None, typer.Option("--for", min=0, help="Seconds; without it until unpinned.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Keep blocks from being evicted, by any kdn on this store."""
    from kdn.clock import SystemClock

    refuse_all(key, salt is not None, fingerprint, everything=everything)
    with picked(home, key, salt, fingerprint) as (found, keys):
        found.tenancy.persistent_pins.pin(
            keys, None if seconds is None else SystemClock().wall() + seconds
        )
    _count(len(keys), "pinned", as_json)


def unpin(
    *,
    key: KeyOption = None,
    salt: SaltOption = None,
    fingerprint: FingerprintOption = None,
    everything: AllOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let pinned blocks be evicted again."""
    refuse_all(key, salt is not None, fingerprint, everything=everything)
    with picked(home, key, salt, fingerprint) as (found, keys):
        count = found.tenancy.persistent_pins.unpin(keys)
    _count(count, "unpinned", as_json)


def copy(
    to: Annotated[str, typer.Option("--to", help="The tier that is to have them too.")],
    *,
    source: Annotated[str | None, typer.Option("--from", help="The tier to read.")] = None,
    key: KeyOption = None,
    salt: SaltOption = None,
    fingerprint: FingerprintOption = None,
    everything: AllOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put blocks into another tier too."""
    from kdn.store.admin.manage import copy as carry

    refuse_all(key, salt is not None, fingerprint, source, everything=everything)
    with picked(home, key, salt, fingerprint, source) as (found, keys):
        tell_done(carry(found, keys, to, source), "copied", as_json)


def move(
    to: Annotated[str, typer.Option("--to", help="The tier that is to have them.")],
    source: Annotated[str, typer.Option("--from", help="The tier that they leave.")],
    *,
    key: KeyOption = None,
    salt: SaltOption = None,
    fingerprint: FingerprintOption = None,
    everything: AllOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put blocks into another tier, and out of the one they are in."""
    from kdn.store.admin.manage import move as carry

    refuse_all(key, salt is not None, fingerprint, source, everything=everything)
    with picked(home, key, salt, fingerprint, source) as (found, keys):
        tell_done(carry(found, keys, to, source), "moved", as_json)


def compress(
    codec: Annotated[str, typer.Argument(help="A lossless codec, as `none`.")],
    *,
    key: KeyOption = None,
    salt: SaltOption = None,
    fingerprint: FingerprintOption = None,
    everything: AllOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write blocks again with another codec."""
    from kdn.store.admin.manage import compress as rewrite

    refuse_all(key, salt is not None, fingerprint, everything=everything)
    with picked(home, key, salt, fingerprint) as (found, keys):
        tell_done(rewrite(found, keys, codec), "rewrote", as_json)
