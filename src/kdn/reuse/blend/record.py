"""What the quality guard remembers between runs: one small JSON file, facts by model and collection."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from kdn.machine.files import publish_file

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


def read_records(file: Path) -> dict[str, dict[str, GuardRecord]]:
    """By model fingerprint and collection. A file that is absent or cannot be read is no record."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, dict[str, GuardRecord]])
    except (OSError, RecursionError, msgspec.MsgspecError):
        return {}


def write_record(file: Path, model: str, collection: str, record: GuardRecord) -> None:
    """Put the record in place of its old one; readers see the old file or the new one.

    Raises StoreError when it cannot be written.
    """
    records = read_records(file)
    records[model] = records.get(model, {}) | {collection: record}
    publish_file(file, msgspec.json.encode(records))
