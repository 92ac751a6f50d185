"""Inputs of layers (E): noted while a sender computes, and read back for a receiver."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, Future

import torch
from torch import Tensor

from kdn.core import LayerView
from kdn.errors import CorruptBlock
from kdn.reuse.source import tensor_over
from kdn.store import Reader

__all__ = ["StatesCapture", "StoredStates"]


class StatesCapture:
    """Observer: keeps what enters some layers, by position, on the CPU."""

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = tuple(layers)
        self._noted: dict[int, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in self.layers}

    def __call__(self, view: LayerView) -> None:
        if view.layer in self._noted:
            self._noted[view.layer].append((view.rows.clone(), view.hidden.detach().cpu().clone()))

    def states(self, start: int, stop: int) -> dict[int, Tensor]:
        """[stop - start, hidden] of each layer whose inputs were noted for all of these positions."""
        found = {}
        for layer, noted in self._noted.items():
            positions = torch.cat([rows for rows, _ in noted]) if noted else torch.empty(0)
            inside = (positions >= start) & (positions < stop)
            if int(inside.sum()) == stop - start:
                found[layer] = torch.cat([hidden for _, hidden in noted])[inside]
        return found


class StoredStates:
    """A layer's inputs of neighbouring blocks, read in the background from `start` on.

    The readers belong to the layer source of the same blocks, which closes them.
    """

    def __init__(
        self, readers: Sequence[Reader], layer: int, dtype: torch.dtype, loader: Executor
    ) -> None:
        self._readers = tuple(readers)
        self._layer, self._dtype, self._loader = layer, dtype, loader
        self._load: Future[Tensor] | None = None

    def start(self) -> None:
        if self._load is None:
            self._load = self._loader.submit(self._read)

    def take(self, start: int, stop: int) -> Tensor:
        self.start()
        assert self._load is not None, "it was started"
        try:
            return self._load.result()[start:stop]
        except CorruptBlock:
            raise
        except Exception as error:
            raise CorruptBlock(f"stored layer inputs could not be read: {error!r}") from error

    def close(self) -> None:
        if self._load is not None:
            self._load.cancel()

    def _read(self) -> Tensor:
        parts = []
        for reader in self._readers:
            run = reader.hidden(self._layer)
            if run is None:
                raise CorruptBlock(f"block {reader.id.key} lost the inputs of layer {self._layer}")
            parts.append(tensor_over(run, self._dtype).view(reader.num_tokens, -1))
        return torch.cat(parts)
