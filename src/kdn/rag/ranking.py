"""Two rankings to one, and passages' scores to parts' scores."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

__all__ = ["fuse", "part_scores"]

K = TypeVar("K", bound=Hashable)

RANK_OFFSET = 60
"""The constant of reciprocal rank fusion (Cormack, Clarke, Büttcher 2009)."""
_REST_WEIGHT = 0.25


def fuse(rankings: Sequence[Sequence[K]], offset: int = RANK_OFFSET) -> dict[K, float]:
    """Reciprocal rank fusion: each ranking gives its n-th entry 1 / (offset + n), n from 1.

    Scaled so that the first of every ranking has 1; best first, equals as they first appear.
    """
    scores: dict[K, float] = defaultdict(float)
    best = len(rankings) / (offset + 1)
    for ranking in rankings:
        for place, key in enumerate(ranking, start=1):
            scores[key] += 1.0 / (offset + place) / best
    return dict(sorted(scores.items(), key=lambda item: -item[1]))


def part_scores(scores: Mapping[str, float], part_of: Mapping[str, str]) -> dict[str, float]:
    """A part counts as much as its best passage and a quarter of its others; best first.

    The full sum would prefer parts with many faint matches to the one with the answer.
    """
    gathered: dict[str, list[float]] = defaultdict(list)
    for key, score in scores.items():
        gathered[part_of[key]].append(score)
    totals = {
        part: max(found) + _REST_WEIGHT * (sum(found) - max(found))
        for part, found in gathered.items()
    }
    return dict(sorted(totals.items(), key=lambda item: -item[1]))
