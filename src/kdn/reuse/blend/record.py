"""What the quality guard remembers between runs: one small JSON file, by model, tenant and collection."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from kdn.machine.files import locked, make_private, publish_file, system_errors

_Count = Annotated[int, msgspec.Meta(ge=0)]
_Nats = Annotated[float, msgspec.Meta(ge=0)]
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]

__all__ = ["GuardRecord", "read_records", "write_record"]


class GuardRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Comparisons of one model's blended answers over one collection with full prefills."""

    asked: _Count = 0
    """Blended answers that left the ratio to kdn."""
    samples: _Count = 0
    """Those that were compared."""
    agreed: _Count = 0
    """Those whose first token was that of a full prefill."""
    recent_kl: tuple[_Nats, ...] = ()
    """Of the last comparisons, in nats."""
    ratio: _Share | None = None
    """The least ratio, where the guard has changed it; 1 means that blending was stopped."""


_File = dict[str, dict[str, GuardRecord]]
"""By "MODEL", or "MODEL SALT" for a tenant with a salt: no fingerprint holds a space."""


def read_records(file: Path) -> dict[tuple[str, str], dict[str, GuardRecord]]:
    """By model fingerprint and salt, then by collection, the last written one last.

    A file that is absent or cannot be read is no record.
    """
    try:
        found = msgspec.json.decode(file.read_bytes(), type=_File)
    except (OSError, RecursionError, msgspec.MsgspecError):
        return {}
    return {_owner(key): records for key, records in found.items()}


def write_record(
    file: Path, model: str, salt: str, collection: str, record: GuardRecord | None
) -> None:
    """Put the record in place of its old one, or None; readers see the old file or the new one.

    Safe from several threads and processes: none loses another's record. Raises StoreError when it cannot be
    written.
    """
    with system_errors(f"changing {file}"):
        make_private(file.parent)
        with locked(file.with_suffix(".lock")):
            _write(file, model, salt, collection, record)


def _write(file: Path, model: str, salt: str, collection: str, record: GuardRecord | None) -> None:
    records = read_records(file)
    own = records.setdefault((model, salt), {})
    own.pop(collection, None)
    if record is not None:
        own[collection] = record
    named = {
        f"{model} {salt}" if salt else model: kept
        for (model, salt), kept in records.items()
        if kept
    }
    publish_file(file, msgspec.json.encode(named))


def _owner(key: str) -> tuple[str, str]:
    model, _, salt = key.partition(" ")
    return model, salt
