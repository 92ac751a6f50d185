"""Stored blocks as a layer source: read ahead by one thread, glued along the tokens."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from concurrent.futures import Executor, Future

import numpy as np
import torch
from torch import Tensor

from kdn.core import KvShape, LayerKV
from kdn.store import Reader

__all__ = ["StoreSource"]

_READ_BYTES = 1 << 20
"""Neighbouring layers of a block are read together until a read is at least this large."""


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
        self._loads: dict[int, Future[tuple[LayerKV, ...]]] = {}

    @property
    def name(self) -> str:
        return self._name

    @property
    def num_tokens(self) -> int:
        return sum(reader.num_tokens for reader in self._readers)

    def start(self, layer: int) -> None:
        if layer not in self._loads:
            self._loads[layer] = self._loader.submit(self._load, layer)

    def take(self, layer: int) -> tuple[LayerKV, ...]:
        self.start(layer)
        return self._loads.pop(layer).result()

    def close(self) -> None:
        for load in self._loads.values():
            load.cancel()
        for reader in self._readers:
            reader.close()

    def _load(self, layer: int) -> tuple[LayerKV, ...]:
        return tuple(self._run(reader, layer) for reader in self._readers)

    def _run(self, reader: Reader, layer: int) -> LayerKV:
        self._read_group(reader, layer)
        size = (2, reader.id.num_tokens, self._shape.num_kv_heads, self._shape.head_dim)
        both = _tensor(reader.layer(layer), self._dtype).view(size)[:, : reader.num_tokens]
        return LayerKV(both[0], both[1])

    def _read_group(self, reader: Reader, layer: int) -> None:
        """Have the layer and its neighbours brought in by one large read."""
        run_bytes = reader.id.num_tokens * self._shape.layer_token_bytes
        size = max(1, -(-_READ_BYTES // run_bytes))
        first = layer // size * size
        reader.layers(first, min(first + size, self._shape.num_layers))


def _tensor(data: memoryview, dtype: torch.dtype) -> Tensor:
    """The bytes as a flat tensor, uncopied. Torch knows no read-only memory: nobody may write to it."""
    source = np.frombuffer(data, dtype=np.uint8)
    raw = (ctypes.c_char * data.nbytes).from_address(source.ctypes.data)
    raw.source = source  # type: ignore[attr-defined]  # who holds the tensor holds the bytes
    return torch.frombuffer(raw, dtype=dtype)
