"""Fair timing: contestants take turns in one run, and the ratio of each turn is what counts.

A machine's speed drifts by tens of percents in minutes; two measurements taken side by side drift
together.  So every comparison runs all sides in every round, in alternating order, and reports the
median of the rounds' ratios with the smallest and the largest.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = [
    "REST_S",
    "Ratio",
    "Samples",
    "decode_rate",
    "interleave",
    "median",
    "ratio",
    "said_of_aim",
]

Samples = dict[str, list[float]]
"""Seconds by contestant, one per round."""

REST_S = 0.3
"""Worker threads of OpenMP spin for a fifth of a second after work; a side that runs in another
process must not share the cores with them."""


@dataclass(frozen=True)
class Ratio:
    """How many times faster one side was, over paired rounds."""

    median: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f}, {self.pairs} pairs)"


def interleave(
    sides: Mapping[str, Callable[[int], float]],
    rounds: int,
    *,
    first: int = 0,
    rest_s: float = REST_S,
    rest: Callable[[float], None] = time.sleep,
) -> Samples:
    """Call every side once a round, with the round's number; the order turns round each time.

    A side returns the seconds it measured itself, so that what it needs to prepare is left out.
    """
    samples: Samples = {name: [] for name in sides}
    names = list(sides)
    for number in range(first, first + rounds):
        for name in names if number % 2 == 0 else reversed(names):
            rest(rest_s)
            samples[name].append(sides[name](number))
    return samples


def ratio(samples: Samples, ours: str, theirs: str) -> Ratio | None:
    """Their time over ours, by rounds; None when either side was absent."""
    if not samples.get(ours) or not samples.get(theirs):
        return None
    ratios = [b / a for a, b in zip(samples[ours], samples[theirs], strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios), len(ratios))


def median(samples: Samples, name: str) -> float | None:
    """The median seconds of a side; None when it was absent."""
    return statistics.median(samples[name]) if samples.get(name) else None


def decode_rate(arrivals_s: Sequence[Sequence[float]]) -> float | None:
    """Tokens per second of streams that run together, from the arrival time of each token.

    Counted from when the last stream got its first token until the first stream is done: the span
    in which all of them were decoding, and nothing else was.  None when there is no such span.
    """
    start = max(times[0] for times in arrivals_s)
    stop = min(times[-1] for times in arrivals_s)
    counted = sum(1 for times in arrivals_s for at in times if start < at <= stop)
    if stop <= start or counted == 0:
        return None
    return counted / (stop - start)


def said_of_aim(low: float, high: float, most: float) -> str:
    """What an interval says of the aim to stay within `most`."""
    if high <= most:
        return "is met"
    return "is missed" if low > most else "can be neither claimed nor denied"
