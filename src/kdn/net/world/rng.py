"""Randomness that is part of the state: a copied world draws the same numbers."""

from __future__ import annotations

import numpy as np

from kdn.net.world.compiled import compiled
from kdn.net.world.records import Rows

__all__ = ["exponential", "uniform"]

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_TO_UNIT = 1.0 / 9007199254740992.0


@compiled
def uniform(clock: Rows) -> float:
    """The next number in [0, 1), by SplitMix64; moves the state."""
    state = clock[0].random + _STEP
    clock[0].random = state
    z = (state ^ (state >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    z = z ^ (z >> np.uint64(31))
    return float(z >> np.uint64(11)) * _TO_UNIT


@compiled
def exponential(clock: Rows, mean: float) -> float:
    """The next number of an exponential distribution."""
    return float(-mean * np.log(1.0 - uniform(clock)))
