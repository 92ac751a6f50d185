"""One packet at a time, for senders and routers whose network is real.

The same rules as in `loop`, minus the simulated links: bytes and time come from outside.
"""

from __future__ import annotations

from kdn.net.world.compiled import compiled
from kdn.net.world.loop import next_opportunity, rate_index_at
from kdn.net.world.packets import release, take
from kdn.net.world.queue import dequeue, enqueue
from kdn.net.world.records import CE, NIL, SECOND, State
from kdn.net.world.rng import uniform
from kdn.net.world.sender import (
    acknowledge,
    choose_mark,
    find_lost,
    give_up_all,
    is_undecided,
    late_feedback,
    may_send,
    note_sent,
    timeout_at,
)

__all__ = [
    "MUST_ASK",
    "MUST_WAIT",
    "READY",
    "admit",
    "book_packet",
    "check_timer",
    "is_lost",
    "late_feedback",
    "leaves_at",
    "next_to_forward",
    "packet_acked",
    "readiness",
]

MUST_WAIT = 0
"""Window, pacing, application or the flow's end forbid a packet now."""
MUST_ASK = 1
"""The flow may send, but its marking has to be chosen first."""
READY = 2


@compiled
def readiness(state: State, flow_id: int, now: int) -> int:
    """May the flow send a packet now? MUST_WAIT, MUST_ASK or READY."""
    flow = state.flows[flow_id]
    if not may_send(flow) or flow.next_send > now or now >= flow.stop:
        return MUST_WAIT
    if is_undecided(flow, now):
        return MUST_ASK
    return READY


@compiled
def book_packet(state: State, flow_id: int, now: int) -> int:
    """Book the flow's next packet as sent now; its row, or NIL when every row is in use."""
    flow = state.flows[flow_id]
    packet = take(state)
    if packet == NIL:
        return NIL
    p = state.packets[packet]
    ecn = choose_mark(state, flow_id)
    p.flow, p.seq, p.size, p.sent_ecn, p.ecn = flow_id, flow.seq, flow.size, ecn, ecn
    p.t_ready = flow.decided if flow.answered == 1 else now
    p.t_deliver, p.travelling = NIL, 0
    flow.seq += 1
    note_sent(state, packet, now)
    return packet


@compiled
def packet_acked(state: State, packet: int, ce: bool, now: int) -> None:
    """The feedback of an outstanding packet has arrived."""
    if ce:
        state.packets[packet].ecn = CE
    acknowledge(state, packet, now)
    release(state, packet)


@compiled
def check_timer(state: State, flow_id: int, now: int) -> None:
    """Look for losses, and time out when nothing has come back for too long."""
    find_lost(state, flow_id, now)
    flow = state.flows[flow_id]
    if flow.oldest != NIL and now >= timeout_at(flow):
        give_up_all(state, flow_id, now)


@compiled
def admit(state: State, size: int, ecn: int, now: int) -> int:
    """Queue a packet that came from a socket at hop 0: its row, or NIL when it was dropped."""
    packet = take(state)
    if packet == NIL:
        state.clock[0].full = 0
        return NIL
    p = state.packets[packet]
    p.flow, p.size, p.sent_ecn, p.ecn = 0, size, ecn, ecn
    p.outstanding, p.travelling = 0, 1
    if enqueue(state, 0, packet, now):
        return packet
    p.travelling = 0
    release(state, packet)
    return NIL


@compiled
def next_to_forward(state: State, now: int) -> int:
    """The packet hop 0 sends now, or NIL. Its row is still taken; `release` it after use."""
    return dequeue(state, 0, now)


@compiled
def leaves_at(state: State, size: int, start: int) -> int:
    """When the last bit of a packet leaves hop 0's link, which begins it at `start` or waits to begin."""
    if state.hops[0].opportunities:
        return int(next_opportunity(state, 0, start))
    return start + int(size * 8.0 * SECOND / state.rate[rate_index_at(state, 0, start)])


@compiled
def is_lost(state: State) -> bool:
    """Does hop 0's link lose the packet that leaves it now? Draws the next number where it may."""
    row = state.hops[0]
    if row.loss > 0.0 and uniform(state.clock) < row.loss:
        row.lost += 1
        return True
    return False
