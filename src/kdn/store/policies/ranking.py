"""The order in which blocks go: by expected saving per byte and second, the least first.

What a second of room is worth at best is the index of Gittins over a learned chance of reuse.  For a block
that was last used so long ago, retain it for a time and give it up if it was not used by then.  Its index is
the most uses per second of room that any such time gives.  Gittins, Bandit processes and dynamic allocation
indices (J. R. Stat. Soc. B, 1979); Beckmann, Chen, Cidon, LHD: improving cache hit rate by maximizing hit
density (NSDI 2018) rank by a like density.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from kdn.core import BlockKey
from kdn.store.policies.risk import EDGES_S, NUM_AGES, ReuseRisk, age_of

__all__ = ["EvictionRanking", "Place", "density_level", "level_of", "worth_by_age"]

_LEVELS_PER_DOUBLING = 4

Place = tuple[str, int, int]
"""Blocks of one place differ in age only: their kind, the levels of their chance and their saving."""
_Head = tuple[float, int, BlockKey, Place, Iterator[tuple[BlockKey, float]]]


class EvictionRanking:
    """Blocks by place, each place in the order of last use, merged by worth when asked."""

    def __init__(self, risks: Mapping[str, ReuseRisk]) -> None:
        """`risks` are the models by kind, which go on learning."""
        self._risks = risks
        self._places: defaultdict[Place, OrderedDict[BlockKey, float]] = defaultdict(OrderedDict)
        self._place_of: dict[BlockKey, Place] = {}
        self._worth: dict[tuple[str, int], list[float]] = {}

    def __len__(self) -> int:
        return len(self._place_of)

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._place_of

    def add(self, key: BlockKey, at_s: float, place: Place) -> None:
        """The block was last used then; later than any other of its place."""
        self._places[place][key] = at_s
        self._place_of[key] = place

    def discard(self, key: BlockKey) -> None:
        """The block is ranked no more, if it was."""
        place = self._place_of.pop(key, None)
        if place is not None:
            del self._places[place][key]

    def learned(self) -> None:
        """The models have changed: what was worked out from them is stale."""
        self._worth.clear()

    def worth(self, place: Place, age_s: float) -> float:
        """Expected saving per byte and second."""
        kind, level, density = place
        worth = self._worth.get((kind, level))
        if worth is None:
            chances = [self._risks[kind].chance(age) for age in range(NUM_AGES)]
            worth = worth_by_age(chances, 2 ** (level / _LEVELS_PER_DOUBLING))
            self._worth[kind, level] = worth
        return float(worth[age_of(max(age_s, 0.0))] * 2 ** (density / _LEVELS_PER_DOUBLING))

    def least(self, now_s: float) -> float:
        """What the first block to go is worth."""
        return min((head[0] for head in self._heads(now_s)), default=0.0)

    def victims(self, now_s: float) -> Iterator[BlockKey]:
        """Every block, the one of least worth first."""
        heads = self._heads(now_s)
        heapq.heapify(heads)
        while heads:
            _, number, key, place, rest = heads[0]
            yield key
            for following, at_s in rest:
                worth = self.worth(place, now_s - at_s)
                heapq.heapreplace(heads, (worth, number, following, place, rest))
                break
            else:
                heapq.heappop(heads)

    def check(self) -> None:
        """Audit the places. Raises AssertionError saying what does not add up."""
        for key, place in self._place_of.items():
            assert key in self._places[place], f"{key} is not in its place"

    def _heads(self, now_s: float) -> list[_Head]:
        """Of each place the oldest block, with what it is worth."""
        heads: list[_Head] = []
        for number, (place, blocks) in enumerate(self._places.items()):
            if blocks:
                rest = iter(blocks.items())
                key, at_s = next(rest)
                heads.append((self.worth(place, now_s - at_s), number, key, place, rest))
        return heads


def level_of(multiple: float) -> int:
    """How many quarter doublings a chance is above the baseline."""
    return round(_LEVELS_PER_DOUBLING * math.log2(min(max(multiple, 2**-6), 2**9)))


def density_level(saving: float, size_bytes: int) -> int:
    """How many quarter doublings a saving per byte is above one."""
    return round(_LEVELS_PER_DOUBLING * math.log2(max(saving, 1e-30) / size_bytes))


def worth_by_age(chances: Sequence[float], multiple: float) -> list[float]:
    """Uses per second for each age bucket, at the best time to give up.

    `chances[age]` is the baseline chance of a use within the bucket; `multiple` scales its hazard.
    """
    widths = [b - a for a, b in itertools.pairwise(EDGES_S)]
    widths.append(widths[-1])
    scaled = [1 - (1 - chance) ** multiple for chance in chances]
    return [_best(scaled, widths, age) for age in range(len(chances))]


def _best(chances: Sequence[float], widths: Sequence[float], age: int) -> float:
    unused, uses, seconds, best = 1.0, 0.0, 0.0, 0.0
    for chance, width in zip(chances[age:], widths[age:], strict=True):
        uses += unused * chance
        seconds += unused * width * (1 - chance / 2)
        unused *= 1 - chance
        best = max(best, uses / seconds)
    return best
