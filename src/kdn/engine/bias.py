"""How a sequence's columns are scaled: by layer and query head, before or after the softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from kdn.core import ColumnScale
from kdn.model.attention import Scaling

__all__ = ["ColumnBias"]


class ColumnBias:
    """The scaled columns of one sequence, for prompt rows and decoded rows alike.

    Factors of one column multiply.  A layer whose factors are all 1 is not scaled.
    """

    def __init__(self, scales: Sequence[ColumnScale], num_heads: int, device: torch.device) -> None:
        used = [scale for scale in scales if scale.factor != 1 and scale.columns]
        self._layers: dict[int, Scaling] = {}
        for layer in dict.fromkeys(scale.layer for scale in used):
            logs = [
                _summed([s for s in used if (s.layer, s.literal) == (layer, literal)], num_heads)
                for literal in (False, True)
            ]
            bias, gain = (log if log is None else log.to(device) for log in logs)
            self._layers[layer] = Scaling(bias, None if gain is None else gain.exp())

    def at(self, layer: int, num_columns: int) -> Scaling | None:
        """The layer's scaling over the first `num_columns` columns; None where nothing is scaled."""
        found = self._layers.get(layer)
        if found is None:
            return None
        bias, gain = found.bias, found.gain
        return Scaling(
            bias if bias is None else pad(bias, (0, num_columns - bias.shape[1])),
            gain if gain is None else pad(gain, (0, num_columns - gain.shape[1]), value=1.0),
        )


def _summed(scales: Sequence[ColumnScale], num_heads: int) -> Tensor | None:
    """[heads, columns] logarithms of the factors up to the last scaled column; None for no scale."""
    if not scales:
        return None
    logs = torch.zeros((num_heads, 1 + max(max(scale.columns) for scale in scales)))
    for scale in scales:
        heads = torch.tensor(range(num_heads) if scale.heads is None else scale.heads)
        logs[heads[:, None], torch.tensor(scale.columns)[None]] += math.log(scale.factor)
    return logs
