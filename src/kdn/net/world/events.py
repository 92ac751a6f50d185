"""The event heap: soonest first, and first come first served among equals."""

from __future__ import annotations

from kdn.net.world.compiled import compiled
from kdn.net.world.records import Rows, State

__all__ = ["ACK", "APP", "ARRIVE", "LINK", "SEND", "TIMER", "UPDATE", "pop", "push"]

SEND = 0
"""A flow may send again."""
ARRIVE = 1
"""A packet comes to a hop."""
LINK = 2
"""A hop's link is free, or its next opportunity has come."""
UPDATE = 3
"""A hop's PI controller runs."""
ACK = 4
"""A packet's acknowledgement reaches the sender."""
TIMER = 5
"""A flow looks for packets that will never be acknowledged."""
APP = 6
"""A flow's application has data, or changes its mind."""


@compiled
def push(state: State, t: int, kind: int, arg: int) -> None:
    """Let (kind, arg) happen at `t`. Sets `clock.full` when there is no room."""
    clock = state.clock[0]
    i = clock.num_events
    if i >= len(state.events):
        clock.full = 1
        return
    clock.num_events = i + 1
    clock.count += 1
    while i > 0:
        above = state.events[(i - 1) >> 1]
        if above.t <= t:  # among equals the older one stays above
            break
        _write(state.events[i], above.t, above.n, above.kind, above.arg)
        i = (i - 1) >> 1
    _write(state.events[i], t, clock.count, kind, arg)


@compiled
def pop(state: State) -> tuple[int, int, int]:
    """The soonest (t, kind, arg), taken out. The heap must not be empty."""
    clock, events = state.clock[0], state.events
    first = events[0]
    t, kind, arg = first.t, first.kind, first.arg
    size = clock.num_events - 1
    clock.num_events = size
    last = events[size]
    i, child = 0, 1
    while child < size:
        if child + 1 < size and _before(events[child + 1], events[child]):
            child += 1
        below = events[child]
        if not _before(below, last):
            break
        _write(events[i], below.t, below.n, below.kind, below.arg)
        i, child = child, 2 * child + 1
    _write(events[i], last.t, last.n, last.kind, last.arg)
    return t, kind, arg


@compiled
def _before(a: Rows, b: Rows) -> bool:
    return bool(a.t < b.t or (a.t == b.t and a.n < b.n))


@compiled
def _write(event: Rows, t: int, n: int, kind: int, arg: int) -> None:
    event.t, event.n, event.kind, event.arg = t, n, kind, arg
