"""How a sequence's columns are scaled: by layer and query head, before or after the softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kdn.core import ColumnScale, Plan
from kdn.model import Decoder
from kdn.model.attention import AttentionSlice, Scaling

__all__ = ["ColumnBias", "split_rows"]


class ColumnBias:
    """The scaled columns of one sequence, for prompt rows from `since` on and decoded rows alike.

    Factors of one column multiply.  A layer whose factors are all 1 is not scaled.
    """

    def __init__(
        self,
        scales: Sequence[ColumnScale],
        num_heads: int,
        device: torch.device,
        since: int = 0,
    ) -> None:
        self.since = since
        used = [scale for scale in scales if scale.factor != 1 and scale.columns]
        made: dict[tuple[object, ...], Scaling] = {}
        self._layers: dict[int, Scaling] = {}
        for layer in dict.fromkeys(scale.layer for scale in used):
            own = [scale for scale in used if scale.layer == layer]
            said = tuple((one.columns, one.factor, one.heads, one.literal) for one in own)
            if said not in made:  # most layers scale the same columns alike
                made[said] = _scaling(own, num_heads, device)
            self._layers[layer] = made[said]

    @classmethod
    def of(cls, plan: Plan, decoder: Decoder) -> ColumnBias:
        """What a plan says of columns."""
        return cls(plan.scale, decoder.config.num_heads, decoder.device, plan.scale_from)

    def at(self, layer: int) -> Scaling | None:
        """How the layer's columns are scaled; None where none is."""
        return self._layers.get(layer)


def split_rows(
    whole: AttentionSlice, bias: ColumnBias | None
) -> list[tuple[AttentionSlice, ColumnBias | None]]:
    """The rows before those that see scaled columns, and those, as far as there are any."""
    if bias is None:
        return [(whole, None)]
    num_plain = int(torch.searchsorted(whole.positions, bias.since))
    if not 0 < num_plain < whole.stop - whole.start:
        return [(whole, None if num_plain else bias)]
    middle, positions = whole.start + num_plain, whole.positions
    plain = replace(whole, stop=middle, positions=positions[:num_plain])
    return [(plain, None), (replace(whole, start=middle, positions=positions[num_plain:]), bias)]


def _scaling(scales: Sequence[ColumnScale], num_heads: int, device: torch.device) -> Scaling:
    columns = torch.tensor(sorted({column for scale in scales for column in scale.columns}))
    bias = _summed([one for one in scales if not one.literal], columns, num_heads)
    literal = [one for one in scales if one.literal]
    gain = _summed(literal, columns, num_heads).exp().to(device) if literal else None
    return Scaling(columns.to(device), bias.to(device), gain)


def _summed(scales: Sequence[ColumnScale], columns: Tensor, num_heads: int) -> Tensor:
    """[columns, heads] logarithms of the factors."""
    logs = torch.zeros((columns.numel(), num_heads))
    for scale in scales:
        rows = torch.searchsorted(columns, torch.tensor(sorted(set(scale.columns))))
        heads = torch.tensor(range(num_heads) if scale.heads is None else scale.heads)
        logs[rows[:, None], heads[None]] += math.log(scale.factor)
    return logs
