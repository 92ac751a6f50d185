"""Time to first token of requests that share one link and one processor, by how loads are ordered.

The worked example of the paper (2411.02820, figure 13): ten layers, a unit to load or to compute each;
A recomputes layers 4-10, B comes at 2 and recomputes 1-3.  Together they wait 47 units where all is loaded
before anything is computed, 30 where only what is reused is loaded, and 17 with E first and KV behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["LoadOrder", "SharedArrival", "times_to_first_token"]


class LoadOrder(StrEnum):
    """What is loaded, and when."""

    ALL_FIRST = "all first"
    """E and every layer, then the group is computed; the next request waits for both."""
    REUSED_FIRST = "reused first"
    """E and the layers outside the group, then the group is computed."""
    PIPELINED = "pipelined"
    """E, then the layers outside the group while the group is computed; the next one's loads follow."""


@dataclass(frozen=True)
class SharedArrival:
    """A request: when it comes, and the layers [first, last] that it recomputes, counted from 0."""

    at: float
    first: int
    last: int

    @property
    def num_computed(self) -> int:
        return self.last - self.first + 1


def times_to_first_token(
    arrivals: Sequence[SharedArrival],
    num_layers: int,
    order: LoadOrder,
    *,
    load: float = 1.0,
    states: float = 1.0,
    compute: float = 1.0,
) -> list[float]:
    """From each arrival, in order of arrival, to its first token.

    `load` is the time of a layer's KV on the link, `states` that of E, `compute` that of a layer.  A group
    from layer 0 needs no E.
    """
    link_free, processor_free = 0.0, 0.0
    waited = []
    for one in arrivals:
        states_s = states if one.first > 0 else 0.0
        num_loaded = num_layers - (0 if order is LoadOrder.ALL_FIRST else one.num_computed)
        computing_s = one.num_computed * compute
        if order is LoadOrder.PIPELINED:
            has_states = max(one.at, link_free) + states_s
            link_free = has_states + num_loaded * load
            can_begin = has_states if one.first > 0 else one.at
            processor_free = max(can_begin, processor_free) + computing_s
            ready = max(link_free, processor_free)
        else:
            begins = max(one.at, link_free, processor_free)
            ready = begins + states_s + num_loaded * load + computing_s
            link_free = processor_free = ready
        waited.append(ready - one.at)
    return waited
