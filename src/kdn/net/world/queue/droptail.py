"""DropTail: one list, first in first out; what finds no room is dropped."""

from __future__ import annotations

from kdn.net.world.compiled import compiled
from kdn.net.world.queue.discipline import Discipline
from kdn.net.world.queue.lists import append_c, take_c
from kdn.net.world.records import NIL, State

__all__ = ["DROPTAIL"]


@compiled
def _enqueue(state: State, hop: int, packet: int, now: int) -> bool:
    row = state.hops[hop]
    if row.bytes_c + state.packets[packet].size > row.limit:
        row.overflowed += 1
        return False
    append_c(state, hop, packet, now)
    return True


@compiled
def _dequeue(state: State, hop: int, now: int) -> int:
    if state.hops[hop].len_c == 0:
        return NIL
    return take_c(state, hop)


DROPTAIL = Discipline("droptail", _enqueue, _dequeue)
