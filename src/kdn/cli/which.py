"""Options that say which blocks are meant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from kdn.core import BlockKey
    from kdn.store import Store

__all__ = ["FingerprintOption", "KeyOption", "SaltOption", "TierOption", "chosen"]

KeyOption = Annotated[
    list[str] | None, typer.Option("--key", help="A block's key; may be repeated.")
]
SaltOption = Annotated[str | None, typer.Option("--salt", help="The blocks of this tenant only.")]
FingerprintOption = Annotated[
    str | None, typer.Option("--fingerprint", help="The blocks of this model only.")
]
TierOption = Annotated[str | None, typer.Option("--tier", help="What lies in this tier only.")]


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
    from kdn.store.manage import Which, select

    return select(store, Which(tuple(map(BlockKey, keys or ())), salt, fingerprint, tier))
