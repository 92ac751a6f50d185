"""What a second of room is worth at best: the index of Gittins over a learned chance of reuse.

For something that was last used so long ago, keep it for a time and give it up if it was not used
by then.  Its index is the most uses per second kept that any such time gives.  Gittins, Bandit
processes and dynamic allocation indices (J. R. Stat. Soc. B, 1979); Beckmann, Chen, Cidon, LHD:
improving cache hit rate by maximizing hit density (NSDI 2018) rank by a like density.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from kdn.store.policies.risk import EDGES_S

__all__ = ["worth_by_age"]


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
