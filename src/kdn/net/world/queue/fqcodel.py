"""FQ-CoDel (RFC 8290): a queue per flow, served in turn, each with its own CoDel (RFC 8289).

A world knows its flows, so each has a queue of its own: no hash, hence no collisions.
"""

from __future__ import annotations

import numpy as np

from kdn.net.world.compiled import compiled
from kdn.net.world.packets import release
from kdn.net.world.queue.discipline import Discipline
from kdn.net.world.records import CE, MS, NIL, NOT_ECT, Rows, State

__all__ = ["FQ_CODEL"]

_TARGET = 5 * MS
_INTERVAL = 100 * MS


@compiled
def _enqueue(state: State, hop: int, packet: int, now: int) -> bool:
    """Append to the flow's own queue; when the buffer is full the fattest queue pays."""
    row, p = state.hops[hop], state.packets[packet]
    queue = state.fq[hop, p.flow]
    p.t_queue, p.next = now, NIL
    if queue.head == NIL:
        queue.head = packet
    else:
        state.packets[queue.tail].next = packet
    queue.tail = packet
    queue.bytes += p.size
    row.joined += 1
    row.len_c += 1
    row.bytes_c += p.size
    if queue.listed == 0:
        queue.listed = 1
        queue.deficit = row.mtu
        _list_new(state, hop, p.flow)
    if row.bytes_c > row.limit:
        _drop_fattest(state, hop)
    return True


@compiled
def _dequeue(state: State, hop: int, now: int) -> int:
    """The next packet in turn, or NIL."""
    row = state.hops[hop]
    while True:
        new = row.new_head != NIL
        flow = row.new_head if new else row.old_head
        if flow == NIL:
            return NIL
        queue = state.fq[hop, flow]
        if queue.deficit <= 0:
            queue.deficit += row.mtu
            _unlist_first(row, queue, new)
            _list_old(state, hop, flow)
            continue
        packet = _codel(state, hop, flow, now)
        if packet == NIL:
            _unlist_first(row, queue, new)
            if new and row.old_head != NIL:
                _list_old(state, hop, flow)
            else:
                queue.listed = 0
            continue
        queue.deficit -= state.packets[packet].size
        return int(packet)


@compiled
def _list_new(state: State, hop: int, flow: int) -> None:
    row = state.hops[hop]
    state.fq[hop, flow].next = NIL
    if row.new_head == NIL:
        row.new_head = flow
    else:
        state.fq[hop, row.new_tail].next = flow
    row.new_tail = flow


@compiled
def _list_old(state: State, hop: int, flow: int) -> None:
    row = state.hops[hop]
    state.fq[hop, flow].next = NIL
    if row.old_head == NIL:
        row.old_head = flow
    else:
        state.fq[hop, row.old_tail].next = flow
    row.old_tail = flow


@compiled
def _unlist_first(row: Rows, queue: Rows, new: bool) -> None:
    if new:
        row.new_head = queue.next
    else:
        row.old_head = queue.next


@compiled
def _take(state: State, hop: int, flow: int) -> int:
    queue, row = state.fq[hop, flow], state.hops[hop]
    packet = queue.head
    p = state.packets[packet]
    queue.head = p.next
    queue.bytes -= p.size
    row.len_c -= 1
    row.bytes_c -= p.size
    return int(packet)


@compiled
def _drop_fattest(state: State, hop: int) -> None:
    fattest = 0
    for flow in range(state.fq.shape[1]):
        if state.fq[hop, flow].bytes > state.fq[hop, fattest].bytes:
            fattest = flow
    packet = _take(state, hop, fattest)
    state.hops[hop].overflowed += 1
    state.packets[packet].travelling = 0
    release(state, packet)


@compiled
def _should_drop(state: State, hop: int, flow: int, packet: int, now: int) -> bool:
    """Has this queue's delay stood above the target for an interval?"""
    queue = state.fq[hop, flow]
    if now - state.packets[packet].t_queue < _TARGET or queue.bytes <= state.hops[hop].mtu:
        queue.first_above = 0
        return False
    if queue.first_above == 0:
        queue.first_above = now + _INTERVAL
        return False
    return bool(now >= queue.first_above)


@compiled
def _punish(state: State, hop: int, packet: int) -> bool:
    """Mark the packet, or drop it (True) when it cannot be marked."""
    p, row = state.packets[packet], state.hops[hop]
    if p.ecn != NOT_ECT:
        p.ecn = CE
        row.marked_c += 1
        return False
    row.dropped += 1
    p.travelling = 0
    release(state, packet)
    return True


@compiled
def _codel(state: State, hop: int, flow: int, now: int) -> int:
    """The queue's next packet after CoDel's marks and drops, or NIL."""
    queue = state.fq[hop, flow]
    while queue.head != NIL:
        packet = _take(state, hop, flow)
        if not _should_drop(state, hop, flow, packet, now):
            queue.dropping = 0
            return packet
        if not queue.dropping:
            _start_dropping(queue, now)
        elif now >= queue.drop_next:
            queue.count += 1
            queue.drop_next += int(_INTERVAL / np.sqrt(queue.count))
        else:
            return packet
        if not _punish(state, hop, packet):
            return packet
    queue.dropping = 0
    return NIL


@compiled
def _start_dropping(queue: Rows, now: int) -> None:
    """Resume near the old rate when the last bout was recent (RFC 8289, 5.3)."""
    delta = queue.count - queue.last_count
    recent = now - queue.drop_next < 16 * _INTERVAL
    queue.dropping = 1
    queue.count = delta if recent and delta > 1 else 1
    queue.last_count = queue.count
    queue.drop_next = now + int(_INTERVAL / np.sqrt(queue.count))


FQ_CODEL = Discipline("fq_codel", _enqueue, _dequeue, uses_lists=False)
