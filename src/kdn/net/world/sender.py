"""A flow's sender: what it may send, what its ACKs mean, which packets it gives up.

Losses are told by time (RACK): a packet is lost once one sent later was acknowledged and a round
trip and a quarter have passed, because packets of one flow overtake each other when they are
marked one by one.  Every transmission has a number of its own, as in QUIC.
"""

from __future__ import annotations

import numpy as np

from kdn.net.world.compiled import compiled
from kdn.net.world.control import on_acked, on_lost, on_marked, on_timeout, pacing_rate
from kdn.net.world.packets import release
from kdn.net.world.records import (
    APP_GREEDY,
    ASK,
    BLOCKS,
    BY_TYPE,
    CE,
    ECT0,
    ECT1,
    FIXED,
    MS,
    NIL,
    RANDOM,
    SECOND,
    Rows,
    State,
)
from kdn.net.world.rng import exponential, uniform

__all__ = [
    "acknowledge",
    "choose_mark",
    "feed_app",
    "find_lost",
    "give_up_all",
    "is_undecided",
    "late_feedback",
    "may_send",
    "note_sent",
    "timeout_at",
]

_MIN_RTO = 200.0 * MS
_BURST_HEAD = 10
"""By type: this many packets of an application burst go low, the rest classic."""


@compiled
def may_send(flow: Rows) -> bool:
    """Do the application and the window allow one more packet (pacing aside)?"""
    if flow.app_bytes < flow.size:
        return False
    return bool(flow.has_window == 0 or flow.inflight + flow.size <= flow.cwnd)


@compiled
def is_undecided(flow: Rows, now: int) -> bool:
    """Must the flow's chooser be asked before the next packet? Never twice for one packet, however
    long the answer took."""
    if flow.marking != ASK or flow.answered == 1:
        return False
    return bool(now - flow.decided >= flow.decision_gap)


@compiled
def choose_mark(state: State, flow_id: int) -> int:
    """The ECN codepoint of the next packet. The flow's mark only moves; no chooser is asked here."""
    flow = state.flows[flow_id]
    marking = flow.marking
    if marking == FIXED or state.clock[0].frozen == 1:
        return int(flow.ect if marking == FIXED else flow.mark)
    before = flow.mark
    if marking == RANDOM:
        flow.mark = ECT1 if uniform(state.clock) < 0.5 else ECT0
    elif marking == BLOCKS:
        _next_block(state.clock, flow)
    elif marking == BY_TYPE:
        flow.mark = ECT1 if flow.chunk_sent < _BURST_HEAD * flow.size else ECT0
    if flow.mark != before:
        flow.switches += 1
    if marking == ASK and flow.probe == 1:
        flow.probe = 0
        return ECT0 if flow.mark == ECT1 else ECT1
    return int(flow.mark)


@compiled
def _next_block(clock: Rows, flow: Rows) -> None:
    """Runs of 1 to 64 packets, both classes equally often, so that a log teaches both."""
    if flow.marks_left <= 0:
        flow.marks_left = 1 + int(64 * uniform(clock) * uniform(clock))
        flow.mark = ECT1 if uniform(clock) < 0.5 else ECT0
    flow.marks_left -= 1


@compiled
def note_sent(state: State, packet: int, now: int) -> None:
    """Enter a filled packet row into its flow's counts, and set when the next may follow."""
    p = state.packets[packet]
    flow = state.flows[p.flow]
    p.outstanding, p.t_send = 1, now
    p.inflight, p.delivered = flow.inflight, flow.delivered
    p.delivered_t = flow.delivered_t if flow.inflight > 0 else now
    if flow.inflight == 0:
        flow.last_progress = now
    p.older, p.newer = flow.newest, NIL
    if flow.newest == NIL:
        flow.oldest = packet
    else:
        state.packets[flow.newest].newer = packet
    flow.newest = packet
    flow.inflight += p.size
    flow.sent += 1
    flow.answered = 0
    if p.sent_ecn == ECT1:
        flow.sent_l += 1
    flow.last_sent = now
    flow.chunk_sent += p.size
    if flow.app_bytes < APP_GREEDY / 2:
        flow.app_bytes -= p.size
    rate = pacing_rate(flow)
    flow.pacing = rate
    if rate > 0.0:
        flow.next_send = max(now, flow.next_send) + int(p.size / rate)


@compiled
def _unlink(state: State, packet: int) -> None:
    """Take a packet out of the sender's list; it is no longer in flight."""
    p = state.packets[packet]
    flow = state.flows[p.flow]
    if p.older == NIL:
        flow.oldest = p.newer
    else:
        state.packets[p.older].newer = p.newer
    if p.newer == NIL:
        flow.newest = p.older
    else:
        state.packets[p.newer].older = p.older
    flow.inflight -= p.size
    p.outstanding = 0


@compiled
def _measure_rtt(flow: Rows, rtt: float, now: int) -> None:
    if flow.srtt == 0.0:
        flow.srtt, flow.rttvar = rtt, rtt / 2.0
    else:
        flow.rttvar += 0.25 * (abs(flow.srtt - rtt) - flow.rttvar)
        flow.srtt += 0.125 * (rtt - flow.srtt)
    if flow.keeps_min_rtt == 0 and rtt < flow.min_rtt:
        flow.min_rtt, flow.min_rtt_t = rtt, now


@compiled
def acknowledge(state: State, packet: int, now: int) -> None:
    """The packet's ACK is here: measure, respond to its mark, grow, give up what was overtaken."""
    p = state.packets[packet]
    flow = state.flows[p.flow]
    if p.outstanding == 0:
        late_feedback(flow, p.seq)
        return
    _note_order(flow, p.seq)
    is_used = _uses_window(flow, p.seq, now)
    _unlink(state, packet)
    rtt = float(now - p.t_send)
    _measure_rtt(flow, rtt, now)
    flow.acked += 1
    flow.acked_bytes += p.size
    flow.delivered += p.size
    flow.delivered_t = now
    flow.last_progress, flow.backoff = now, 0
    if p.t_send >= flow.rack_t:
        flow.rack_t, flow.rack_rtt = p.t_send, rtt
    rate = (flow.delivered - p.delivered) / max(now - p.delivered_t, 1)
    if p.ecn == CE:
        flow.ce += 1
        on_marked(flow, p.sent_ecn, p.size, p.t_send, now)
    grows = is_used and (p.ecn != CE or flow.grows_on_marks == 1)
    grown = p.size if grows else 0
    on_acked(flow, p.size, grown, rtt, rate, p.delivered, now)
    find_lost(state, p.flow, now)


@compiled
def _uses_window(flow: Rows, seq: int, now: int) -> bool:
    """Was there data for the whole window while the packet was in flight? Else its ACK says nothing of a
    larger one (RFC 9438, 5.8). Data that only pacing holds back counts (RFC 9002, 7.8)."""
    if flow.inflight + flow.app_bytes + flow.size > flow.cwnd:
        flow.filled = flow.seq
    if seq < flow.filled:
        return True
    flow.unfilled += now - flow.last_progress
    return False


@compiled
def late_feedback(flow: Rows, seq: int) -> None:
    """A packet that was given up has arrived after all: counted, and its bytes are not goodput twice."""
    _note_order(flow, seq)
    flow.spurious += 1


@compiled
def _note_order(flow: Rows, seq: int) -> None:
    """Reordering as RFC 4737 counts it: arrivals after a higher number, and by how far."""
    if seq > flow.highest:
        flow.highest = seq
    else:
        flow.late += 1
        flow.extent = max(flow.extent, flow.highest - seq)


@compiled
def _give_up(state: State, packet: int, now: int) -> None:
    p = state.packets[packet]
    flow = state.flows[p.flow]
    _unlink(state, packet)
    flow.lost += 1
    if flow.app_bytes < APP_GREEDY / 2 and flow.has_window == 1:
        flow.app_bytes += p.size  # to be sent again
    on_lost(flow, p.t_send, now)
    release(state, packet)


@compiled
def find_lost(state: State, flow_id: int, now: int) -> None:
    """Give up packets that one sent later has overtaken for longer than reordering explains."""
    flow = state.flows[flow_id]
    patience = flow.rack_rtt + max(0.25 * flow.min_rtt, 4.0 * flow.rttvar)
    while flow.oldest != NIL:
        t_send = state.packets[flow.oldest].t_send
        if t_send >= flow.rack_t or now - t_send < patience:
            break
        _give_up(state, flow.oldest, now)


@compiled
def timeout_at(flow: Rows) -> int:
    """When the flow must stop waiting: its retransmission timeout, doubled at each in a row."""
    wait = max(flow.srtt + 4.0 * flow.rttvar, _MIN_RTO) if flow.srtt > 0.0 else 1.0 * SECOND
    return int(flow.last_progress + wait * 2.0**flow.backoff)


@compiled
def give_up_all(state: State, flow_id: int, now: int) -> None:
    """A timeout: everything in flight is lost, and the window begins again."""
    flow = state.flows[flow_id]
    on_timeout(flow, now)  # first: it covers what was sent before, so that no loss cuts once more
    while flow.oldest != NIL:
        _give_up(state, flow.oldest, now)
    flow.backoff = min(flow.backoff + 1, 6)
    flow.last_progress = now


@compiled
def feed_app(clock: Rows, flow: Rows, now: int) -> int:
    """Give the application its next chunk; returns when it wants to be called again."""
    if flow.on > 0.0 and now >= flow.app_until:
        resume = now + int(exponential(clock, flow.off))
        flow.app_until = resume + int(exponential(clock, flow.on))
        return resume
    chunk = flow.chunk
    if flow.chunk_spread > 0.0:
        chunk = max(exponential(clock, chunk), 1.0)
    packets = max(np.round(chunk / flow.size), 1.0)
    if flow.app_bytes < flow.size:
        flow.t_ready = now
        flow.chunk_sent = 0.0
        _note_idle(flow, now)
    flow.app_bytes += packets * flow.size
    wait = flow.interval
    if flow.interval_spread > 0.0:
        wait = exponential(clock, wait)
    return now + max(int(wait), 1)


@compiled
def _note_idle(flow: Rows, now: int) -> None:
    """A window that was not used for a timeout says nothing about the path any more."""
    if flow.inflight > 0:
        return
    flow.unfilled += now - flow.last_progress
    idle = now - flow.last_sent > max(flow.srtt + 4.0 * flow.rttvar, _MIN_RTO)
    if idle and flow.restarts_after_idle == 1:
        flow.cwnd = min(flow.cwnd, 10.0 * flow.size)
        flow.epoch = 0
