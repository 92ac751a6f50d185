"""DualPI2 (RFC 9332): two queues, one PI controller, and a coupling that makes them fair.

`linux = 1` behaves as the kernel's sch_dualpi2: a step in place of the ramp, random in place of
regular marks, and squared drops for the classic queue by two rolls.  Every function takes the
time; the simulator and the router over real sockets call the same ones.
"""

from __future__ import annotations

from kdn.net.world.compiled import compiled
from kdn.net.world.packets import release
from kdn.net.world.queue.discipline import Discipline
from kdn.net.world.queue.lists import append_c, append_l, sojourn_c, sojourn_l, take_c, take_l
from kdn.net.world.records import CE, NIL, NOT_ECT, Rows, State
from kdn.net.world.rng import uniform

__all__ = ["DUALPI2", "pi_update", "ramp"]


@compiled
def ramp(sojourn: int, min_th: int, ramp_range: int) -> float:
    """The L queue's own marking likelihood: 0 below `min_th`, 1 after the range, a line between."""
    if sojourn < min_th:
        return 0.0
    if sojourn >= min_th + ramp_range:
        return 1.0
    return (sojourn - min_th) / ramp_range


@compiled
def pi_update(state: State, hop: int, now: int) -> None:
    """One step of the PI controller: p' from the longer of the two head sojourns."""
    row = state.hops[hop]
    q = max(sojourn_c(state, hop, now), sojourn_l(state, hop, now))
    change = row.alpha * (q - row.target) + row.beta * (q - row.q_prev)
    ceiling = 1.0  # with drops on overload p' may pass 1/k; that is what starts the overload
    row.p = min(max(row.p + change * 1e-9, 0.0), ceiling)
    row.q_prev = q


@compiled
def _enqueue(state: State, hop: int, packet: int, now: int) -> bool:
    """Classify by the ECN field's last bit and append; False when the shared buffer is full."""
    row, p = state.hops[hop], state.packets[packet]
    backlog = row.bytes_l + row.bytes_c
    if backlog + row.mtu > row.limit or row.len_l + row.len_c >= row.limit_packets:
        row.overflowed += 1
        return False
    if p.ecn & 1:
        p.long_queue = 1 if row.len_l >= row.th_len else 0
        append_l(state, hop, packet, now)
    else:
        append_c(state, hop, packet, now)
    return True


@compiled
def _dequeue(state: State, hop: int, now: int) -> int:
    """The next packet, marked where it must be, or NIL. Packets dropped on the way are freed."""
    row = state.hops[hop]
    while row.len_l + row.len_c > 0:
        before = row.credit
        low = _serve_l(state, hop, now)
        waiting = row.len_l  # counts the packet itself, as the L queue's threshold does
        packet = take_l(state, hop) if low else take_c(state, hop)
        p = state.packets[packet]
        if row.linux:
            dropped = _act_linux(state.clock, row, p, low, now)
        elif low:
            dropped = _act_l(row, p, waiting, now)
        else:
            dropped = _act_c(row, p)
        if row.len_l + row.len_c == 0:
            row.credit = row.mtu * (row.weight_c - row.weight_l)
        if not dropped:
            return packet
        row.credit = before  # a dropped packet has not used the link
        row.dropped += 1
        p.travelling = 0
        release(state, packet)
    return NIL


@compiled
def _serve_l(state: State, hop: int, now: int) -> bool:
    """Is the L queue next? Books the turn when both queues wait."""
    row = state.hops[hop]
    if row.len_c == 0:
        return True
    if row.len_l == 0:
        return False
    if row.ts_fifo:
        return bool(sojourn_l(state, hop, now) + row.t_shift >= sojourn_c(state, hop, now))
    if row.credit <= 0:
        row.credit += row.weight_c * state.packets[row.head_l].size
        return True
    row.credit -= row.weight_l * state.packets[row.head_c].size
    return False


@compiled
def _fires_l(row: Rows, likelihood: float) -> bool:
    """Thin out regularly: the L queue's accumulator passes 1."""
    row.recur_l += likelihood
    if row.recur_l > 1.0:
        row.recur_l -= 1.0
        return True
    return False


@compiled
def _fires_c(row: Rows, likelihood: float) -> bool:
    row.recur_c += likelihood
    if row.recur_c > 1.0:
        row.recur_c -= 1.0
        return True
    return False


@compiled
def _mark_l(row: Rows, p: Rows) -> None:
    if p.ecn != CE:
        p.ecn = CE
        row.marked_l += 1


@compiled
def _mark_c(row: Rows, p: Rows) -> None:
    p.ecn = CE
    row.marked_c += 1


@compiled
def _act_l(row: Rows, p: Rows, waiting: int, now: int) -> bool:
    """Mark an L packet, or in overload perhaps drop it (True)."""
    p_cl = row.coupling * row.p
    if p_cl < 1.0:
        own = ramp(now - p.t_queue, row.min_th, row.ramp_range) if waiting > row.th_len else 0.0
        if _fires_l(row, max(own, p_cl)):
            _mark_l(row, p)
        return False
    if _fires_c(row, row.p * row.p):
        return True
    _mark_l(
        row, p
    )  # p_CL >= 1 is certainty: booked as a likelihood, its excess would mark long after
    return False


@compiled
def _act_c(row: Rows, p: Rows) -> bool:
    """Mark a C packet, or drop it (True): not ECN-capable, or overload has switched ECN off."""
    p_c = row.p * row.p
    if not _fires_c(row, p_c):
        return False
    if p.ecn == NOT_ECT or p_c >= row.p_c_max:
        return True
    _mark_c(row, p)
    return False


@compiled
def _act_linux(clock: Rows, row: Rows, p: Rows, low: bool, now: int) -> bool:
    """The kernel's rules: rolls, not accumulators; nothing coupled below two packets of backlog."""
    if row.bytes_l + row.bytes_c + p.size >= 2 * row.mtu:
        p_l = row.p * row.coupling
        overload = p_l > 1.0
        squared = uniform(clock) < row.p and uniform(clock) < row.p
        if low:
            if overload and squared:
                return True
            if uniform(clock) < p_l:
                _mark_l(row, p)
        elif squared:
            if overload or p.ecn == NOT_ECT:
                return True
            _mark_c(row, p)
    if low and p.long_queue and now - p.t_queue > row.min_th:
        _mark_l(row, p)
    return False


DUALPI2 = Discipline("dualpi2", _enqueue, _dequeue, pi_update, has_timer=True)
