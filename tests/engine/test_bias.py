"""How columns are scaled, layer by layer."""

from __future__ import annotations

import math

import torch

from kdn.core import ColumnScale
from kdn.engine.bias import ColumnBias


def test_layers_that_scale_alike_share_one_table_and_others_have_their_own() -> None:
    """Two columns twice and one half: log 2, log 2, log 0.5 at every head."""
    same = [ColumnScale(layer, (3, 5), 2.0) for layer in (1, 2)]
    bias = ColumnBias([*same, ColumnScale(4, (6,), 0.5)], 2, torch.device("cpu"))
    one, two, other = bias.at(1), bias.at(2), bias.at(4)
    assert one is two
    assert one is not None
    assert other is not None
    assert bias.at(3) is None
    assert one.columns.tolist() == [3, 5]
    assert torch.equal(one.bias, torch.full((2, 2), math.log(2)))
    assert torch.equal(other.bias, torch.full((1, 2), math.log(0.5)))
