"""The two first-in-first-out lists that every hop has: low-latency and classic."""

from __future__ import annotations

from kdn.net.world.compiled import compiled
from kdn.net.world.records import NIL, State

__all__ = [
    "append_c",
    "append_l",
    "sojourn_c",
    "sojourn_l",
    "take_c",
    "take_l",
]


@compiled
def append_l(state: State, hop: int, packet: int, now: int) -> None:
    """Put `packet` at the end of the low-latency queue."""
    row, p = state.hops[hop], state.packets[packet]
    p.t_queue, p.next = now, NIL
    if row.len_l == 0:
        row.head_l = packet
    else:
        state.packets[row.tail_l].next = packet
    row.tail_l = packet
    row.len_l += 1
    row.bytes_l += p.size
    row.joined += 1


@compiled
def append_c(state: State, hop: int, packet: int, now: int) -> None:
    """Put `packet` at the end of the classic queue."""
    row, p = state.hops[hop], state.packets[packet]
    p.t_queue, p.next = now, NIL
    if row.len_c == 0:
        row.head_c = packet
    else:
        state.packets[row.tail_c].next = packet
    row.tail_c = packet
    row.len_c += 1
    row.bytes_c += p.size
    row.joined += 1


@compiled
def take_l(state: State, hop: int) -> int:
    """The head of the low-latency queue, taken out. It must not be empty."""
    row = state.hops[hop]
    packet = row.head_l
    row.head_l = state.packets[packet].next
    row.len_l -= 1
    row.bytes_l -= state.packets[packet].size
    return int(packet)


@compiled
def take_c(state: State, hop: int) -> int:
    """The head of the classic queue, taken out. It must not be empty."""
    row = state.hops[hop]
    packet = row.head_c
    row.head_c = state.packets[packet].next
    row.len_c -= 1
    row.bytes_c -= state.packets[packet].size
    return int(packet)


@compiled
def sojourn_l(state: State, hop: int, now: int) -> int:
    """How long the head of the low-latency queue has waited; 0 when it is empty."""
    row = state.hops[hop]
    return int(now - state.packets[row.head_l].t_queue) if row.len_l > 0 else 0


@compiled
def sojourn_c(state: State, hop: int, now: int) -> int:
    """How long the head of the classic queue has waited; 0 when it is empty."""
    row = state.hops[hop]
    return int(now - state.packets[row.head_c].t_queue) if row.len_c > 0 else 0
