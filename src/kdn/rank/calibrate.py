"""One number that makes probabilities honest: the temperature that labelled rows find likeliest.

Temperature scaling (Guo et al., "On calibration of modern neural networks", 2017): the order of the
choices stays as it is, how sure the model sounds does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from kdn.errors import BadInput
from kdn.rank.choices import share_out

__all__ = ["fit_temperature", "surprise"]

_LOWEST, _HIGHEST = 0.05, 20.0
_GOLDEN = (math.sqrt(5) - 1) / 2


def surprise(
    logprobs: Sequence[Sequence[float]], right: Sequence[int], temperature: float
) -> float:
    """Mean negative log-probability of the right choices at a temperature, in nats."""
    shares = (
        share_out(row, temperature)[place] for row, place in zip(logprobs, right, strict=True)
    )
    return -sum(math.log(max(share, 1e-300)) for share in shares) / len(right)


def fit_temperature(logprobs: Sequence[Sequence[float]], right: Sequence[int]) -> float:
    """The temperature of least surprise, between 0.05 and 20, to a hundredth of itself.

    The surprise has one valley over log temperature, which golden sections close in on.  Raises
    BadInput when there are no labelled rows.
    """
    if not right:
        raise BadInput("no row has a known label to calibrate with")
    low, high = math.log(_LOWEST), math.log(_HIGHEST)
    while high - low > 0.005:
        left, more = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if surprise(logprobs, right, math.exp(left)) <= surprise(logprobs, right, math.exp(more)):
            high = more
        else:
            low = left
    return math.exp((low + high) / 2)
