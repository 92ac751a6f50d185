"""The store of a home folder, and options that say which of its blocks are meant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdn.cli.options import read_settings
from kdn.cli.show import tell_failures
from kdn.errors import BadInput

if TYPE_CHECKING:
    from kdn.core import BlockKey
    from kdn.store import Store

__all__ = [
    "AllOption",
    "FingerprintOption",
    "KeyOption",
    "SaltOption",
    "TierOption",
    "chosen",
    "opened",
    "picked",
    "refuse_all",
]

KeyOption = Annotated[
    list[str] | None, typer.Option("--key", help="A block's key; may be repeated.")
]
SaltOption = Annotated[str | None, typer.Option("--salt", help="The blocks of this tenant only.")]
FingerprintOption = Annotated[
    str | None, typer.Option("--fingerprint", help="The blocks of this model only.")
]
TierOption = Annotated[str | None, typer.Option("--tier", help="What lies in this tier only.")]


AllOption = Annotated[bool, typer.Option("--all", help="All blocks, where nothing picks some.")]


@contextmanager
def opened(home: Path | None) -> Iterator[Store]:
    """The store of this home folder, without any model."""
    from kdn.api.store import open_configured_store
    from kdn.trace import Recorder

    trace = Recorder()
    with open_configured_store(read_settings(home), trace=trace) as found:
        yield found
        tell_failures(trace)


@contextmanager
def picked(
    home: Path | None,
    keys: list[str] | None,
    salt: str | None,
    fingerprint: str | None,
    tier: str | None = None,
) -> Iterator[tuple[Store, list[BlockKey]]]:
    """The open store and the blocks of it that the options name (see `chosen`)."""
    with opened(home) as found:
        yield found, chosen(found, keys, salt, fingerprint, tier)


def chosen(
    store: Store,
    keys: list[str] | None,
    salt: str | None,
    fingerprint: str | None,
    tier: str | None,
) -> list[BlockKey]:
    """The blocks that the options name; all of them when no option does.

    Raises BadInput for a key or a tier that is not there.
    """
    from kdn.core import BlockKey
    from kdn.store.admin.manage import Which, select

    return select(store, Which(tuple(map(BlockKey, keys or ())), salt, fingerprint, tier))


def refuse_all(*picking: object, everything: bool) -> None:
    """Raise BadInput when nothing picks blocks and `--all` was not said: this changes them."""
    if not everything and not any(picking):
        raise BadInput("which blocks? pick some with --key, --salt or --fingerprint, or say --all")
