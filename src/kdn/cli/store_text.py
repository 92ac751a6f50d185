"""kdn store put and lookup: from text to stored KV, and what of a text is stored. These need the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdn.cli.options import (
    DeviceOption,
    DtypeOption,
    HomeOption,
    JsonOption,
    ModelChoice,
    ModelOption,
)
from kdn.cli.show import emit, tell, tell_failures
from kdn.cli.store import store
from kdn.machine.text import read_text

__all__ = ["lookup", "put", "store"]

FilesArgument = Annotated[
    list[Path], typer.Argument(help="Text files.", exists=True, dir_okay=False)
]
PublicOption = Annotated[
    bool, typer.Option("--public", help="For every tenant: under the public salt.")
]
TenantOption = Annotated[str, typer.Option("--salt", help="For this tenant.")]


def _salt(salt: str, public: bool) -> str:
    from kdn.core import PUBLIC_SALT
    from kdn.errors import BadInput

    if salt and public:
        raise BadInput("a text is put either for one tenant (--salt) or for all (--public)")
    return PUBLIC_SALT if public else salt


@store.command()
def put(
    files: FilesArgument,
    *,
    model: ModelOption = "smollm2-135m",
    salt: TenantOption = "",
    public: PublicOption = False,
    home: HomeOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compute and store the KV of documents now, so that the first question about them is quick."""
    owner = _salt(salt, public)
    rows = []
    with ModelChoice(model, home, device, dtype).open() as kdn:
        for file in files:
            tokens = kdn.prefill(read_text(file), file.name, owner)
            rows.append({"file": str(file), "tokens": tokens})
            if not as_json:
                tell(f"{file}: {tokens:,} tokens")
        kdn.store.flush()
        failed = tell_failures(kdn.trace)
    if as_json:
        emit({"salt": owner, "files": rows})
    if failed:
        raise typer.Exit(1)


@store.command()
def lookup(
    files: FilesArgument,
    *,
    model: ModelOption = "smollm2-135m",
    salt: TenantOption = "",
    public: PublicOption = False,
    home: HomeOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how much of each document's KV would hit, and from which tier. Computes nothing."""
    from kdn.store.admin.shapes import lookup_shape

    owner = _salt(salt, public)
    shown = []
    with ModelChoice(model, home, device, dtype).open() as kdn:
        for file in files:
            match, wanted = kdn.lookup(read_text(file), file.name, owner)
            shape = lookup_shape(match, wanted)
            shown.append({"file": str(file), **shape})
            if not as_json:
                tiers = ", ".join(dict.fromkeys(hit.tier for hit in match.hits)) or "nowhere"
                tell(f"{file}: {match.num_tokens:,} of {wanted:,} tokens ({tiers})")
        tell_failures(kdn.trace)
    if as_json:
        emit({"salt": owner, "files": shown})
