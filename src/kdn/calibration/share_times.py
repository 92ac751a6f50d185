"""How long each way to share takes on this machine, beside the receiver's own prefill.

Every way reads a context of each length and a question after it, from memory, through the executor: what a
request pays but for its queue and its loads.  The ways take turns, and the least of a few rounds counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice

import msgspec

from kdn.calibration.share_profile import ShareItem, ShareProfiler
from kdn.clock import Clock
from kdn.reuse.share import LinearMap, PairRecord, ShareChoice
from kdn.reuse.share.pairs import WayTimes

__all__ = ["with_times"]

LENGTHS = (256, 1024)
"""Tokens of context: a line through two lengths gives the others."""
_ROUNDS = 3
OWN = None
"""The receiver's own prefill, among the ways."""


def with_times(
    record: PairRecord,
    profiler: ShareProfiler,
    items: Sequence[ShareItem],
    made: LinearMap | None,
    clock: Clock,
) -> PairRecord:
    """The profile with the time of each way that may be chosen, and of the prefill.

    Contexts are made of the tokens of `items`, as many as a length asks for.
    """
    wanted = {one.choice for mode in ("best", "published") for one in record.usable(mode)}
    ways = [OWN, *(one.choice for one in record.points if one.choice in wanted)]
    times: dict[ShareChoice | None, WayTimes] = dict.fromkeys(ways, ())
    for length in LENGTHS:
        tokens = (token for item in cycle(items) for token in item.context)
        item = ShareItem(tuple(islice(tokens, length)), items[0].question, items[0].answer)
        for way, seconds in _timed(profiler.readers(item, ways, made), clock).items():
            times[way] += ((length, seconds),)
    points = [
        msgspec.structs.replace(one, times=times.get(one.choice, ())) for one in record.points
    ]
    return msgspec.structs.replace(record, points=tuple(points), prefill_times=times[OWN])


def _timed(
    readers: Mapping[ShareChoice | None, Callable[[], object]], clock: Clock
) -> dict[ShareChoice | None, float]:
    least: dict[ShareChoice | None, float] = {}
    for _ in range(_ROUNDS):
        for way, read in readers.items():
            began_s = clock.now()
            read()
            took_s = clock.now() - began_s
            least[way] = min(least.get(way, took_s), took_s)
    return least
