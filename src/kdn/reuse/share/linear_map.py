"""A linear map from a sender's K and V to a receiver's, layer by layer: y = x + x D + c.

Ridge regression of the difference, so that a strong penalty means plain reuse.  Fitted once for an
ordered pair of models, on texts that both compute.  Keys carry no rotary position, so that the map holds
at every position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from kdn.core import LayerKV, LayerSource
from kdn.errors import BadInput
from kdn.machine.files import publish_file
from kdn.model.digest import digest_tensors
from kdn.model.linear import Linear, build_linear
from kdn.reuse.changed import ChangedSource

__all__ = ["LinearMap", "MapFit", "load_map", "save_map"]

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Tried for each layer, as shares of the mean square of an input; held-out tokens choose."""
HELD_OUT_EVERY = 5
"""One text in so many chooses the penalty."""


@dataclass(frozen=True)
class LinearMap:
    """The map of an ordered pair."""

    weight: Tensor
    """[layers, width, width] fp32, where width is twice kv heads times dim: D transposed."""
    offset: Tensor
    """[layers, width] fp32."""

    def layer(self, layer: int, kv: LayerKV) -> LayerKV:
        """The sender's KV of a layer as the receiver would have it, in the same type."""
        kv = kv.shifted()
        heads, dim = kv.k.shape[1:]
        x = torch.cat((kv.k.flatten(1), kv.v.flatten(1)), dim=1)
        y = self._linears(x.dtype)[layer].onto(x + self.offset[layer].to(x), x)
        k, v = y.chunk(2, dim=1)
        return LayerKV(k.reshape(-1, heads, dim), v.reshape(-1, heads, dim))

    def over(self, source: LayerSource) -> ChangedSource:
        """The source, its KV as the receiver would have it; its name says which map that was."""
        return ChangedSource(source, f"mapped by {self.digest}", self._joined)

    def _joined(self, layer: int, parts: Sequence[LayerKV]) -> list[LayerKV]:
        """All parts of a layer in one multiplication; a row's bits do not depend on the rows beside it."""
        shifted = [part.shifted() for part in parts]
        if len(shifted) == 1:
            return [self.layer(layer, shifted[0])]
        k, v = torch.cat([one.k for one in shifted]), torch.cat([one.v for one in shifted])
        return [self.layer(layer, LayerKV(k, v))]

    @cached_property
    def digest(self) -> str:
        """Of its values: another map of the same pair makes other KV."""
        return digest_tensors({"weight": self.weight, "offset": self.offset})

    def _linears(self, dtype: torch.dtype) -> list[Linear]:
        if dtype not in self._built:
            self._built[dtype] = [build_linear(one.to(dtype)) for one in self.weight]
        return self._built[dtype]

    @cached_property
    def _built(self) -> dict[torch.dtype, list[Linear]]:
        return {}


class MapFit:
    """Sums of a least-squares fit, taken in text by text; memory does not grow with the texts."""

    def __init__(self, num_layers: int, width: int) -> None:
        """`width` is twice kv heads times dim."""
        size = (2, num_layers, width + 1, width + 1)
        self._inputs = torch.zeros(size, dtype=torch.float64)
        self._outputs = torch.zeros((*size[:3], width), dtype=torch.float64)
        self._squares = torch.zeros((2, num_layers), dtype=torch.float64)
        self._num_texts = 0
        self.num_tokens = 0

    def add(self, sender: Tensor, receiver: Tensor) -> None:
        """KV of one text by both models: [layers, 2, tokens, kv heads, dim], unrotated."""
        if sender.shape != receiver.shape:
            raise BadInput(
                f"the sender's KV is {tuple(sender.shape)} and the receiver's {tuple(receiver.shape)};"
                " only models of one shape share KV"
            )
        x, y = (one.transpose(1, 2).flatten(2).double() for one in (sender, receiver))
        ones = torch.cat((x, torch.ones_like(x[..., :1])), dim=-1)
        part = 1 if self._num_texts % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 else 0
        self._inputs[part] += ones.mT @ ones
        self._outputs[part] += ones.mT @ (y - x)
        self._squares[part] += (y - x).square().sum(dim=(1, 2))
        self._num_texts += 1
        self.num_tokens += x.shape[1]

    def solve(self) -> LinearMap:
        """The map, each layer with the penalty that was best on the texts held out.

        A layer that no penalty makes better than plain reuse is left as it is.  Raises BadInput with
        fewer than HELD_OUT_EVERY texts.
        """
        if self._num_texts < HELD_OUT_EVERY:
            raise BadInput(
                f"{self._num_texts} texts are too few to fit a map; give {HELD_OUT_EVERY}"
            )
        solved = [self._layer(layer) for layer in range(self._inputs.shape[1])]
        weight = torch.stack([one[:-1].T for one in solved]).float()
        return LinearMap(weight.contiguous(), torch.stack([one[-1] for one in solved]).float())

    def _layer(self, layer: int) -> Tensor:
        """[width + 1, width]: the differences of a layer as a function of its inputs and one."""
        inputs, outputs = self._inputs[:, layer], self._outputs[:, layer]
        best, least = torch.zeros_like(outputs[0]), float(self._squares[1, layer])
        for penalty in PENALTIES:
            found = _ridge(inputs[0], outputs[0], penalty)
            left = least_squares(inputs[1], outputs[1], found) + float(self._squares[1, layer])
            if left < least:
                best, least = _ridge(inputs.sum(0), outputs.sum(0), penalty), left
        return best


def least_squares(inputs: Tensor, outputs: Tensor, solution: Tensor) -> float:
    """The squared error of `solution`, less the square of what it is to explain."""
    return float((solution * (inputs @ solution - 2 * outputs)).sum())


def _ridge(inputs: Tensor, outputs: Tensor, penalty: float) -> Tensor:
    mean = inputs.diagonal()[:-1].mean()
    penalties = torch.full_like(inputs.diagonal(), float(penalty * mean))
    penalties[-1] = 1e-9 * float(mean) + 1e-12
    solved: Tensor = torch.linalg.solve(inputs + torch.diag(penalties), outputs)
    return solved


def save_map(path: Path, made: LinearMap) -> None:
    """Write a map, whole or not at all. Raises StoreError when that is impossible."""
    publish_file(
        path, save({"weight": made.weight.contiguous(), "offset": made.offset.contiguous()})
    )


def load_map(path: Path, num_layers: int, width: int) -> LinearMap | None:
    """The map in a file; None where there is none that fits the shape."""
    try:
        found = load_file(path)
        made = LinearMap(found["weight"].float(), found["offset"].float())
    except (OSError, SafetensorError, KeyError):
        return None
    fits = made.weight.shape == (num_layers, width, width) and made.offset.shape == (
        num_layers,
        width,
    )
    return made if fits and bool(made.weight.isfinite().all()) else None
