"""Quantiles, by one definition for every room: the nearest rank."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["quantile"]


def quantile(values: Sequence[float], share: float) -> float:
    """The least of the values that so large a share of them does not exceed; values must be there."""
    rank = math.ceil(share * len(values) - 1e-9)  # 0.07 * 100 is a little more than 7
    return sorted(values)[max(rank - 1, 0)]
