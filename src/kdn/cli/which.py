"""The store of a home folder, and options that say which of its blocks are meant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdn.cli.options import HomeOption, read_settings
from kdn.cli.show import tell_failures
from kdn.errors import BadInput

if TYPE_CHECKING:
    from kdn.core import BlockKey
    from kdn.store import Store

__all__ = ["AllOption", "SaltOption", "TierOption", "WhichBlocks", "opened"]

SaltOption = Annotated[str | None, typer.Option("--salt", help="The blocks of this tenant only.")]
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


@dataclass(frozen=True)
class WhichBlocks:
    """The blocks of a home folder's store that options name: four options of a `grouped` command."""

    key: Annotated[
        list[str] | None, typer.Option("--key", help="A block's key; may be repeated.")
    ] = None
    salt: SaltOption = None
    fingerprint: Annotated[
        str | None, typer.Option("--fingerprint", help="The blocks of this model only.")
    ] = None
    home: HomeOption = None

    @contextmanager
    def picked(self, tier: str | None = None) -> Iterator[tuple[Store, list[BlockKey]]]:
        """The open store and these blocks of it; all of them when no option names any.

        Raises BadInput for a key or a tier that is not there.
        """
        from kdn.core import BlockKey
        from kdn.store.admin.manage import Which, select

        keys = tuple(map(BlockKey, self.key or ()))
        with opened(self.home) as found:
            yield found, select(found, Which(keys, self.salt, self.fingerprint, tier))

    def changed(
        self, tier: str | None = None, *, everything: bool
    ) -> AbstractContextManager[tuple[Store, list[BlockKey]]]:
        """The same, to change them.

        Raises BadInput when nothing picks blocks and `--all` was not said.
        """
        if not (everything or self.key or self.salt is not None or self.fingerprint or tier):
            raise BadInput(
                "which blocks? pick some with --key, --salt or --fingerprint, or say --all"
            )
        return self.picked(tier)
