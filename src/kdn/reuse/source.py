"""Stored blocks as a layer source: read ahead by one thread, glued along the tokens."""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import Executor, Future

import numpy as np
import torch
from torch import Tensor

from kdn.core import KvShape, LayerKV
from kdn.store import Reader

__all__ = ["StoreSource", "groups", "loaded_bytes"]

_READ_BYTES = 1 << 20
"""Neighbouring layers are read together, up to as many as make the largest block's read this long."""


class StoreSource:
    """KV of neighbouring blocks, a layer at a time. Holds the blocks pinned until closed.

    `start` never waits: a thread reads and verifies.  `take` raises CorruptBlock when a block turns
    out to be damaged; the store has put it out of use by then.
    """

    def __init__(
        self, name: str, readers: Sequence[Reader], shape: KvShape, loader: Executor
    ) -> None:
        self._name = name
        self._readers = tuple(readers)
        self._shape = shape
        self._loader = loader
        self._dtype = getattr(torch, shape.dtype)
        largest = max(reader.id.num_tokens for reader in readers)
        self._edges = groups(
            shape.num_layers, -(-_READ_BYTES // (largest * shape.layer_token_bytes))
        )
        self._loads: dict[int, Future[list[list[LayerKV]]]] = {}

    @property
    def name(self) -> str:
        return self._name

    @property
    def num_tokens(self) -> int:
        return sum(reader.num_tokens for reader in self._readers)

    def start(self, layer: int) -> None:
        """The layer's group begins to come, and so does the one behind it."""
        group = self._group(layer)
        for one in (group, group + 1):
            if one not in self._loads and one + 1 < len(self._edges):
                self._loads[one] = self._loader.submit(self._load, one)

    def take(self, layer: int) -> list[LayerKV]:
        self.start(layer)
        group = self._group(layer)
        at = layer - self._edges[group]
        return [runs[at] for runs in self._loads[group].result()]

    def close(self) -> None:
        for load in self._loads.values():
            load.cancel()
        for reader in self._readers:
            reader.close()

    def _group(self, layer: int) -> int:
        return bisect_right(self._edges, layer) - 1

    def _load(self, group: int) -> list[list[LayerKV]]:
        """Of every block the runs of the group's layers."""
        start, stop = self._edges[group : group + 2]
        return [
            [self._run(reader, run) for run in reader.layers(start, stop)]
            for reader in self._readers
        ]

    def _run(self, reader: Reader, run: memoryview) -> LayerKV:
        size = (2, reader.id.num_tokens, self._shape.num_kv_heads, self._shape.head_dim)
        k, v = _tensor(run, self._dtype).view(size)[:, : reader.num_tokens].unbind()
        return LayerKV(k, v)


def loaded_bytes(blocks: list[list[LayerKV]]) -> int:
    """The bytes of KV that one task of a source has brought."""
    return sum(run.k.nbytes + run.v.nbytes for runs in blocks for run in runs)


def groups(num_layers: int, most: int) -> list[int]:
    """Edges of groups of layers: 1, 1, 2, 4, ... and then `most` of them, so that little is waited for
    before the first layer can be computed."""
    edges = [0]
    while edges[-1] < num_layers:
        edges.append(min(edges[-1] + min(max(edges[-1], 1), most), num_layers))
    return edges


def _tensor(data: memoryview, dtype: torch.dtype) -> Tensor:
    """The bytes as a flat tensor, uncopied. Torch knows no read-only memory: nobody may write to it."""
    source = np.frombuffer(data, dtype=np.uint8)
    raw = (ctypes.c_char * data.nbytes).from_address(source.ctypes.data)
    raw.source = source  # type: ignore[attr-defined]  # who holds the tensor holds the bytes
    return torch.frombuffer(raw, dtype=dtype)
