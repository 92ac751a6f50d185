"""What codecs do to one model's answers, measured once and kept: no lossy codec is chosen without.

The record lies in the home folder as JSON, one file a fingerprint: with other weights, adapters or
numerics the measurement says nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import msgspec

from kdn.core import Fingerprint
from kdn.errors import StoreError
from kdn.machine.files import publish_file

__all__ = ["CodecQuality", "QualityRecord", "load_record", "save_record"]

_Nats = Annotated[float, msgspec.Meta(ge=0)]
_FINGERPRINT = re.compile(r"[0-9a-zA-Z_-]{1,128}")


class CodecQuality(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One codec on one model."""

    kl: _Nats
    """Mean over the positions, in nats, of KL(uncompressed || with the context through the codec)."""
    kl_p99: _Nats
    """What 99 of 100 positions stay under."""
    changed_share: Annotated[float, msgspec.Meta(ge=0, le=1)]
    """Positions whose most likely token became another."""
    gain: Annotated[float, msgspec.Meta(gt=0)]
    """How many times smaller blocks become, headers and padding included."""


class QualityRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `kdn store calibrate` found for one model."""

    model: str
    fingerprint: str
    positions: int
    context_tokens: int
    """Tokens of KV that went through the codec before each run of positions."""
    wall_s: float
    """When, in seconds since 1970."""
    kl_wrong_document: float
    """The KL when the context is another text of the same length: what is being avoided."""
    kl_no_context: float
    """The KL when the context is left out."""
    codecs: dict[str, CodecQuality]


def load_record(home: Path, fingerprint: Fingerprint) -> QualityRecord | None:
    """The record of that model; None when there is none that can be read and is about it."""
    try:
        data = _path(home, fingerprint).read_bytes()
        record = msgspec.json.decode(data, type=QualityRecord)
    except (OSError, RecursionError, msgspec.MsgspecError):
        return None
    return record if record.fingerprint == fingerprint else None


def save_record(home: Path, record: QualityRecord) -> Path:
    """Write a record down, whole or not at all. Raises StoreError when that is impossible."""
    path = _path(home, Fingerprint(record.fingerprint))
    text = msgspec.json.format(msgspec.json.encode(record), indent=2)
    publish_file(path, text + b"\n")
    return path


def _path(home: Path, fingerprint: Fingerprint) -> Path:
    if not _FINGERPRINT.fullmatch(fingerprint):
        raise StoreError(f"{fingerprint!r} is no model's fingerprint: it cannot name a file")
    return home / "calibration" / f"{fingerprint}.json"
