"""Writes a trace as `LookupRecorder` would have."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path

import msgspec

from kdn.store.traces.recording import TraceRequest


def write_trace(path: Path, requests: Iterable[TraceRequest]) -> None:
    """One request a line; a name that ends in `.gz` is compressed."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wb") as file:
        for request in requests:
            file.write(msgspec.json.encode(request) + b"\n")
