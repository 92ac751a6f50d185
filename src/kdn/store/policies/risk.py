"""How likely something is used again, by its age and by what is known of it: learned as it happens.

A proportional hazards model: the chance of a use within an age bucket is a baseline, common to all,
times one factor per feature.  Cox, Regression models and life-tables (J. R. Stat. Soc. B, 1972);
the baseline is Breslow's (the uses in a bucket over the risk that entered it), a factor is the uses
that were seen over those expected without it, drawn towards 1 while little was seen.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["EDGES_S", "NUM_AGES", "Feature", "Rate", "ReuseRisk", "age_of"]

Feature = tuple[str, int]
"""A name and the level it has."""

_FIRST_S, _GROWTH, NUM_AGES = 4.0, 1.35, 34
EDGES_S: tuple[float, ...] = (0.0, *(_FIRST_S * _GROWTH**n for n in range(NUM_AGES - 1)))
"""Where the age buckets begin: from four seconds to about a day, each a third longer."""
_PRIOR_CHANCE = 0.02
_PRIOR_WEIGHT = 10.0
_STRENGTH = 20.0
"""How many expected uses a factor needs before it is half believed."""


def age_of(age_s: float) -> int:
    """The bucket of an age."""
    return bisect_right(EDGES_S, age_s) - 1


@dataclass(frozen=True, slots=True)
class Rate:
    """How many times likelier than the baseline a use is, and the same without each feature."""

    multiple: float
    parts: tuple[tuple[Feature, float], ...]


class ReuseRisk:
    """The chance of a use by age bucket, and how much a list of features raises or lowers it.

    With no evidence every bucket, each a third longer than the one before, has the same chance:
    the longer ago the last use, the less likely the next one, which is what LRU believes.
    """

    def __init__(self) -> None:
        self._hits = [0.0] * NUM_AGES
        self._risk = [0.0] * NUM_AGES
        self._seen: defaultdict[Feature, float] = defaultdict(float)
        self._expected: defaultdict[Feature, float] = defaultdict(float)

    def chance(self, age: int) -> float:
        """Baseline chance of a use in bucket `age` for what was not used before it."""
        prior = _PRIOR_CHANCE * _PRIOR_WEIGHT
        return min(0.95, (self._hits[age] + prior) / (self._risk[age] + _PRIOR_WEIGHT))

    def factor(self, feature: Feature) -> float:
        """How many times likelier than the baseline a use is with this feature."""
        return (self._seen[feature] + _STRENGTH) / (self._expected[feature] + _STRENGTH)

    def rate(self, features: Sequence[Feature]) -> Rate:
        """What the model says now of something with these features."""
        factors = [self.factor(feature) for feature in features]
        multiple = math.prod(factors)
        return Rate(multiple, tuple(zip(features, (multiple / f for f in factors), strict=True)))

    def expose(self, rate: Rate, age: int, weight: float) -> None:
        """Something that was given `rate` reached bucket `age` unused."""
        self._risk[age] += weight * rate.multiple
        expected = weight * self.chance(age)
        for feature, others in rate.parts:
            self._expected[feature] += expected * others

    def observe(self, rate: Rate, age: int, weight: float) -> None:
        """Something that was given `rate` was used again in bucket `age`."""
        self._hits[age] += weight
        for feature, _ in rate.parts:
            self._seen[feature] += weight
