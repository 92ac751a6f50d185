"""Digests of weights: what a fingerprint says about tensors, taken once and noted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from kdn.errors import StoreError
from kdn.machine.files import publish_file

__all__ = ["DigestCache", "digest_tensors"]


def digest_tensors(tensors: Mapping[str, Tensor], extra: str = "") -> str:
    """Hex digest of names, dtypes, shapes and all bytes, however they were sharded."""
    state = xxhash.xxh3_128(extra.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        state.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        data: Any = tensor.contiguous().view(-1).view(torch.uint8).numpy()
        state.update(data)
    return state.hexdigest()


class DigestCache:
    """Remembers digests of files that have not changed since (same path, size and time)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, files: list[Path]) -> str | None:
        """The digest noted for exactly these files as they are now, or None."""
        try:
            return str(json.loads(self._entry(files).read_text("utf-8"))["digest"])
        except (OSError, ValueError, KeyError, TypeError):
            return None  # no note, or a torn one: the digest is taken again

    def put(self, files: list[Path], digest: str) -> None:
        """Note the digest of these files as they are now, where the folder can be written."""
        try:
            publish_file(self._entry(files), json.dumps({"digest": digest}).encode())
        except (OSError, StoreError):
            return  # the note only saves time

    def _entry(self, files: list[Path]) -> Path:
        state = xxhash.xxh3_128()
        for file in sorted(files):
            about = file.stat()
            state.update(f"{file.resolve()}:{about.st_size}:{about.st_mtime_ns};".encode())
        return self._folder / f"{state.hexdigest()}.json"
