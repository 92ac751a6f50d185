"""Rows for packets: taken, shared by the sender's list and the network, and given back."""

from __future__ import annotations

from kdn.net.world.compiled import compiled
from kdn.net.world.records import NIL, State

__all__ = ["release", "take"]


@compiled
def take(state: State) -> int:
    """A free row, or NIL (and `clock.full`) when every row is in use."""
    clock = state.clock[0]
    if clock.free != NIL:
        packet = clock.free
        clock.free = state.packets[packet].next
        return int(packet)
    if clock.used >= len(state.packets):
        clock.full = 1
        return NIL
    clock.used += 1
    return int(clock.used - 1)


@compiled
def release(state: State, packet: int) -> None:
    """Free the row if neither its sender nor the network needs it."""
    row = state.packets[packet]
    if row.outstanding == 0 and row.travelling == 0:
        row.next = state.clock[0].free
        state.clock[0].free = packet
