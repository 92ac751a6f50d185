"""The hot loop: take the soonest event, let its owner act, go on.

It stops when time is up, when a flow asks which queue its next packet should take, when the log
is full, or when a watched packet's fate is known.
"""

from __future__ import annotations

from kdn.net.world.compiled import compiled
from kdn.net.world.events import ACK, APP, ARRIVE, LINK, SEND, TIMER, UPDATE, pop, push
from kdn.net.world.packets import release, take
from kdn.net.world.queue import dequeue, enqueue, update
from kdn.net.world.records import NIL, SECOND, WATCH_NEXT, WATCH_PACKET, State
from kdn.net.world.rng import exponential, uniform
from kdn.net.world.sender import (
    acknowledge,
    choose_mark,
    feed_app,
    find_lost,
    give_up_all,
    is_undecided,
    may_send,
    note_sent,
    timeout_at,
)

__all__ = [
    "ASKED",
    "DONE",
    "FULL",
    "LOG_FULL",
    "SEEN",
    "advance",
    "answer",
    "copy_into",
    "emit",
    "fate",
    "next_opportunity",
    "rate_index_at",
]

DONE = 0
ASKED = 1
LOG_FULL = 2
SEEN = 3
FULL = 4


@compiled
def _vanish(state: State, packet: int) -> None:
    """The network loses a packet; its sender finds out by itself."""
    p = state.packets[packet]
    p.travelling = 0
    release(state, packet)


@compiled
def rate_index_at(state: State, hop: int, now: int) -> int:
    """Move the hop's place in its rate table to `now` (tables repeat after their period)."""
    row = state.hops[hop]
    i = row.rate_index
    period = row.rates_period
    while True:
        lap, place = (i + 1) // row.rates_len, (i + 1) % row.rates_len
        if state.rate_t[row.rates_at + place] + lap * period > now:
            break
        i += 1
    row.rate_index = i
    return int(row.rates_at + i % row.rates_len)


@compiled
def next_opportunity(state: State, hop: int, now: int) -> int:
    """Take the first opportunity that is not over; several may share a moment. Returns when it is."""
    row = state.hops[hop]
    i, t = row.rate_index, -1
    while t < now:
        i += 1
        t = state.rate_t[row.rates_at + i % row.rates_len] + (i // row.rates_len) * row.rates_period
    row.rate_index = i
    return int(t)


@compiled
def _start_link(state: State, hop: int, now: int) -> None:
    """If the link is idle and something waits, begin to send it (or wait for an opportunity)."""
    row = state.hops[hop]
    if row.busy:
        return
    if row.opportunities:
        if row.len_l + row.len_c > 0:
            row.busy = 1
            push(state, next_opportunity(state, hop, now), LINK, hop)
        return
    packet = dequeue(state, hop, now)
    if packet == NIL:
        return
    rate = (
        state.rate[rate_index_at(state, hop, now)]
        if row.rates_len > 1
        else state.rate[row.rates_at]
    )
    t_done = now + int(state.packets[packet].size * 8.0 * SECOND / rate)
    row.busy = 1
    push(state, t_done, LINK, hop)
    _leave(state, hop, packet, t_done)


@compiled
def _leave(state: State, hop: int, packet: int, now: int) -> None:
    """The packet's last bit leaves at `now`: on to the next hop, or to the receiver and back."""
    row, p = state.hops[hop], state.packets[packet]
    row.left += 1
    row.left_bytes += p.size
    if row.loss > 0.0 and uniform(state.clock) < row.loss:
        row.lost += 1
        _vanish(state, packet)
        return
    t = now + row.prop
    if row.jitter > 0:
        t += int(exponential(state.clock, row.jitter))
    t = max(t, row.last_out)
    row.last_out = t
    flow = state.flows[p.flow]
    if hop != flow.last_hop:
        p.hop = row.next_hop
        push(state, t, ARRIVE, packet)
        return
    p.t_deliver = t + flow.delay_out
    push(state, p.t_deliver + flow.delay_back, ACK, packet)


@compiled
def _arrive(state: State, packet: int, now: int) -> None:
    hop = state.packets[packet].hop
    if not enqueue(state, hop, packet, now):
        _vanish(state, packet)
        return
    _start_link(state, hop, now)


@compiled
def emit(state: State, flow_id: int, size: int, ecn: int, now: int) -> bool:
    """Send one packet of the flow; False when the world has no row left for it."""
    packet = take(state)
    if packet == NIL:
        return False
    flow, p = state.flows[flow_id], state.packets[packet]
    p.flow, p.seq, p.size = flow_id, flow.seq, size
    p.sent_ecn, p.ecn = ecn, ecn
    p.hop, p.travelling, p.t_deliver = flow.first_hop, 1, NIL
    p.t_ready = max(flow.t_ready, 0)
    flow.seq += 1
    note_sent(state, packet, now)
    if flow.timer_armed == 0:
        flow.timer_armed = 1
        push(state, timeout_at(flow), TIMER, flow_id)
    if state.clock[0].watch == WATCH_NEXT:  # the world is a copy made to see this packet's fate
        state.clock[0].watch, state.clock[0].watched = WATCH_PACKET, packet
    if flow.delay_in > 0:
        push(state, now + flow.delay_in, ARRIVE, packet)
    else:
        _arrive(state, packet, now)
    return True


@compiled
def _must_ask(state: State, flow_id: int, now: int) -> bool:
    clock = state.clock[0]
    if clock.frozen == 1 or not is_undecided(state.flows[flow_id], now):
        return False
    clock.asking = flow_id
    return True


@compiled
def _arm_send(state: State, flow_id: int, t: int) -> None:
    flow = state.flows[flow_id]
    if flow.send_armed == 0:
        flow.send_armed = 1
        push(state, t, SEND, flow_id)


@compiled
def _send_all(state: State, flow_id: int, now: int) -> None:
    """Send what window, pacing and application allow; stop to ask where a decision is due."""
    flow = state.flows[flow_id]
    while now < flow.stop and may_send(flow):
        if flow.next_send > now:
            _arm_send(state, flow_id, flow.next_send)
            return
        if _must_ask(state, flow_id, now):
            return
        flow.t_ready = min(now, flow.decided) if flow.decided + flow.decision_cost >= now else now
        if not emit(state, flow_id, flow.size, choose_mark(state, flow_id), now):
            return


@compiled
def _timer(state: State, flow_id: int, now: int) -> None:
    """Look for losses; time out if it is time; come back while anything is in flight."""
    flow = state.flows[flow_id]
    flow.timer_armed = 0
    find_lost(state, flow_id, now)
    if flow.oldest != NIL and now >= timeout_at(flow):
        give_up_all(state, flow_id, now)
        _send_all(state, flow_id, now)
    elif flow.oldest != NIL:
        flow.timer_armed = 1
        push(state, max(timeout_at(flow), now + 1), TIMER, flow_id)


@compiled
def _log(state: State, packet: int, now: int) -> None:
    clock, p = state.clock[0], state.packets[packet]
    if clock.num_log >= len(state.log) or state.flows[p.flow].logged == 0:
        return
    row = state.log[clock.num_log]
    clock.num_log += 1
    row.flow, row.seq, row.size = p.flow, p.seq, p.size
    row.sent_ecn, row.ecn = p.sent_ecn, p.ecn
    row.t_ready, row.t_send, row.t_deliver, row.t_ack = p.t_ready, p.t_send, p.t_deliver, now
    row.inflight = p.inflight


@compiled
def _ack(state: State, packet: int, now: int) -> None:
    p = state.packets[packet]
    p.travelling = 0
    _log(state, packet, now)
    acknowledge(state, packet, now)
    flow_id = p.flow
    release(state, packet)
    _send_all(state, flow_id, now)


@compiled
def _app(state: State, flow_id: int, now: int) -> None:
    flow = state.flows[flow_id]
    if now >= flow.stop:
        return
    push(state, feed_app(state.clock, flow, now), APP, flow_id)
    _send_all(state, flow_id, now)


@compiled
def _handle(state: State, kind: int, arg: int, now: int) -> None:
    if kind == LINK:
        state.hops[arg].busy = 0
        if state.hops[arg].opportunities:
            packet = dequeue(state, arg, now)
            if packet != NIL:
                _leave(state, arg, packet, now)
        _start_link(state, arg, now)
    elif kind == ACK:
        _ack(state, arg, now)
    elif kind == ARRIVE:
        _arrive(state, arg, now)
    elif kind == SEND:
        state.flows[arg].send_armed = 0
        _send_all(state, arg, now)
    elif kind == APP:
        _app(state, arg, now)
    elif kind == TIMER:
        _timer(state, arg, now)
    elif kind == UPDATE:
        update(state, arg, now)
        push(state, now + state.hops[arg].t_update, UPDATE, arg)


@compiled
def _fate_is_known(state: State) -> bool:
    """Has the watched packet arrived or been lost? Writes which, and its delay."""
    clock = state.clock[0]
    p = state.packets[clock.watched]
    if p.travelling == 0:
        clock.watched_lost = 1
        return True
    if p.t_deliver != NIL:
        clock.watched_lost, clock.watched_delay = 0, p.t_deliver - p.t_send
        return True
    return False


@compiled
def advance(state: State, until: int) -> int:
    """Run events up to and including time `until`. Returns why it stopped."""
    clock = state.clock[0]
    while clock.num_events > 0 and state.events[0].t <= until:
        if clock.num_log >= len(state.log):
            return LOG_FULL  # before the event whose row would have no place
        t, kind, arg = pop(state)
        clock.now = t
        clock.handled += 1
        _handle(state, kind, arg, t)
        if clock.full:
            return FULL
        if clock.asking != NIL:
            return ASKED
        if clock.watch == WATCH_PACKET and _fate_is_known(state):
            return SEEN
    clock.now = until
    return DONE


@compiled
def answer(state: State, mark: int, probe: bool, cost: int) -> None:
    """Tell the asking flow its mark. Its packet leaves after `cost`, what deciding took."""
    clock = state.clock[0]
    flow_id, now = clock.asking, clock.now
    clock.asking = NIL
    flow = state.flows[flow_id]
    if flow.mark != mark:
        flow.switches += 1
    flow.mark, flow.decided, flow.answered = mark, now, 1
    flow.probe = 1 if probe else 0
    if cost > 0:
        flow.next_send = max(flow.next_send, now + cost)
    _send_all(state, flow_id, now)


@compiled
def copy_into(target: State, source: State) -> None:
    """Make `target` the same world as `source`, copying only rows in use. Logs are not copied."""
    clock = source.clock[0]
    target.clock[0] = clock
    target.clock[0].num_log = 0
    target.events[: clock.num_events] = source.events[: clock.num_events]
    target.packets[: clock.used] = source.packets[: clock.used]
    target.hops[:] = source.hops
    target.flows[:] = source.flows
    target.fq[:] = source.fq


@compiled
def fate(scratch: State, world: State, mark: int, horizon: int) -> tuple[bool, int]:
    """What would become of the asking flow's next packet under `mark`: (it arrives, its delay).

    Runs a copy in which nothing new is decided; `world` is not changed.  A packet that has not
    arrived within `horizon` counts as lost.
    """
    copy_into(scratch, world)
    clock = scratch.clock[0]
    clock.frozen, clock.watch = 1, WATCH_NEXT
    now = clock.now
    answer(scratch, mark, False, 0)
    reason = DONE
    while clock.now < now + horizon:
        reason = advance(scratch, now + horizon)
        if reason != LOG_FULL:
            break
        clock.num_log = 0
    arrives = reason == SEEN and clock.watched_lost == 0
    return bool(arrives), int(clock.watched_delay)
