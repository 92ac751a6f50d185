"""Stored blocks as a layer source: read ahead by one thread, glued along the tokens."""

from __future__ import annotations

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
        self._loads: dict[int, Future[LayerKV]] = {}

    @property
    def name(self) -> str:
        return self._name

    @property
    def num_tokens(self) -> int:
        return sum(reader.num_tokens for reader in self._readers)

    def start(self, layer: int) -> None:
        if layer not in self._loads:
            self._loads[layer] = self._loader.submit(self._load, layer)

    def take(self, layer: int) -> LayerKV:
        self.start(layer)
        return self._loads.pop(layer).result()

    def close(self) -> None:
        for load in self._loads.values():
            load.cancel()
        for reader in self._readers:
            reader.close()

    def _load(self, layer: int) -> LayerKV:
        size = (self.num_tokens, self._shape.num_kv_heads, self._shape.head_dim)
        k, v = torch.empty(size, dtype=self._dtype), torch.empty(size, dtype=self._dtype)
        to_k, to_v = _bytes_of(k), _bytes_of(v)
        at = 0
        for reader in self._readers:
            self._read_group(reader, layer)
            from_k, from_v = reader.parts(layer)
            np.copyto(to_k[at : at + from_k.nbytes], np.frombuffer(from_k, dtype=np.uint8))
            np.copyto(to_v[at : at + from_v.nbytes], np.frombuffer(from_v, dtype=np.uint8))
            at += from_k.nbytes
        return LayerKV(k, v)

    def _read_group(self, reader: Reader, layer: int) -> None:
        """Have the layer and its neighbours brought in by one large read."""
        run_bytes = reader.id.num_tokens * self._shape.layer_token_bytes
        size = max(1, -(-_READ_BYTES // run_bytes))
        first = layer // size * size
        reader.layers(first, min(first + size, self._shape.num_layers))


def _bytes_of(tensor: Tensor) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """The tensor's memory as bytes, writable."""
    flat: np.ndarray[tuple[int], np.dtype[np.uint8]] = tensor.view(torch.uint8).reshape(-1).numpy()
    return flat
