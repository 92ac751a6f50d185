"""How fast may I send: Reno, CUBIC, DCTCP, Prague, a BBR-like control, and none at all.

Each control answers four events on a flow's row (an ACK, a mark, a loss, a timeout) and reads
no clock.  Marks are answered by the packet's own class: CE on a packet sent as ECT(1) gets the
scalable response, CE on one sent as ECT(0) the classic one, whichever flow sent it (RFC 9331, 4.3).
"""

from __future__ import annotations

import numpy as np

from kdn.net.world.compiled import compiled
from kdn.net.world.records import ECT1, MS, SECOND, Rows

__all__ = [
    "BBR",
    "CUBIC",
    "DCTCP",
    "PRAGUE",
    "RENO",
    "UNRESPONSIVE",
    "on_acked",
    "on_lost",
    "on_marked",
    "on_timeout",
    "pacing_rate",
]

RENO = 0
CUBIC = 1
DCTCP = 2
PRAGUE = 3
BBR = 4
UNRESPONSIVE = 5

_VIRTUAL_RTT = 25.0 * MS
_MARK_GAIN = 1.0 / 16.0
_CUBIC_C = 0.4
_CUBIC_BETA = 0.7
_STARTUP, _DRAIN, _CRUISE, _PROBE_RTT = 0, 1, 2, 3
_BBR_HIGH = 2.885
_BBR_ROUNDS = 10
_BBR_MIN_RTT_AGE = 10 * SECOND
_BBR_PROBE_TIME = 200 * MS


@compiled
def pacing_rate(flow: Rows) -> float:
    """Bytes per nanosecond; 0 where packets follow their ACKs unpaced."""
    cc = flow.cc
    if cc == BBR:
        if flow.bw_now <= 0.0 and flow.bw_before <= 0.0:
            return float(_BBR_HIGH * flow.cwnd / flow.srtt) if flow.srtt > 0 else 0.0
        return _bbr_gain(flow) * _bandwidth(flow)
    if cc == PRAGUE and flow.srtt > 0:
        gain = 2.0 if flow.cwnd < flow.ssthresh else 1.03
        return float(gain * flow.cwnd / flow.srtt)
    return 0.0


@compiled
def on_acked(
    flow: Rows, size: int, grown: int, rtt: float, rate: float, sent_in_round: int, now: int
) -> None:
    """One packet of `size` bytes was acknowledged; `rate` is the delivery rate it saw, bytes/ns.

    The window grows for `grown` of the bytes, which are none where a mark forbids it.
    `sent_in_round` is the flow's delivered count when the packet was sent.
    """
    cc = flow.cc
    if cc == BBR:
        _bbr_acked(flow, rtt, rate, sent_in_round, now)
        return
    if cc == UNRESPONSIVE:
        return
    _end_scalable_round(flow, size, now)
    if flow.cwnd < flow.ssthresh:
        flow.cwnd += grown
    elif cc == CUBIC:
        _cubic_acked(flow, grown, now)
    elif cc == PRAGUE:
        slower = min(1.0, flow.srtt / _VIRTUAL_RTT)
        flow.cwnd += slower * slower * flow.size * grown / flow.cwnd
    else:
        flow.cwnd += flow.size * grown / flow.cwnd
    flow.cwnd = min(flow.cwnd, flow.rwnd)


@compiled
def on_marked(flow: Rows, sent_ecn: int, size: int, t_send: int, now: int) -> None:
    """The ACK says that the packet arrived with CE."""
    cc = flow.cc
    if cc in (BBR, UNRESPONSIVE):
        return
    scalable = cc in (PRAGUE, DCTCP) and sent_ecn == ECT1
    if not scalable:
        if t_send >= flow.recovery:
            _halve(flow, now)
        return
    flow.round_marked += size
    if flow.cwnd < flow.ssthresh:
        flow.mark_share = max(flow.mark_share, 0.5)  # the first mark ends slow start firmly
    wait = max(flow.srtt, _VIRTUAL_RTT) if cc == PRAGUE else flow.srtt
    if now - flow.reduced >= wait:
        flow.reduced = now
        flow.cwnd = max(flow.cwnd * (1.0 - flow.mark_share / 2.0), 2.0 * flow.size)
        flow.ssthresh = flow.cwnd


@compiled
def on_lost(flow: Rows, t_send: int, now: int) -> None:
    """A packet sent at `t_send` was lost; one response covers everything sent before it."""
    if flow.cc in (UNRESPONSIVE, BBR) or t_send < flow.recovery:
        return
    _halve(flow, now)


@compiled
def on_timeout(flow: Rows, now: int) -> None:
    """Nothing came back for a retransmission timeout: begin again from two packets."""
    if flow.cc == UNRESPONSIVE:
        return
    flow.ssthresh = max(flow.cwnd / 2.0, 2.0 * flow.size)
    flow.cwnd = 2.0 * flow.size
    flow.recovery = now
    flow.epoch = 0
    flow.w_max = 0.0


@compiled
def _halve(flow: Rows, now: int) -> None:
    """The classic response: once per round trip, by 0.5 or CUBIC's 0.7."""
    flow.recovery = now
    if flow.cc == CUBIC:
        flow.w_max = flow.cwnd * 0.85 if flow.cwnd < flow.w_max else flow.cwnd
        flow.epoch = 0
        flow.cwnd = max(flow.cwnd * _CUBIC_BETA, 2.0 * flow.size)
    else:
        flow.cwnd = max(flow.cwnd * 0.5, 2.0 * flow.size)
    flow.ssthresh = flow.cwnd


@compiled
def _cubic_acked(flow: Rows, size: int, now: int) -> None:
    """RFC 9438: toward the cubic of one round trip ahead, never below what Reno would have."""
    window, mss = flow.cwnd / flow.size, flow.size
    if flow.epoch == 0:
        flow.epoch = now
        w_max = flow.w_max / mss
        flow.k_cubic = np.cbrt(max(w_max - window, 0.0) / _CUBIC_C)
        flow.w_max = max(flow.w_max, flow.cwnd)
        flow.w_reno = flow.cwnd
    t = (now - flow.epoch + flow.srtt) / SECOND - flow.k_cubic
    target = _CUBIC_C * t * t * t + flow.w_max / mss
    target = min(max(target, window), 1.5 * window)
    flow.cwnd += (target - window) / window * size
    reno_gain = 3.0 * (1.0 - _CUBIC_BETA) / (1.0 + _CUBIC_BETA)
    flow.w_reno += reno_gain * mss * size / flow.w_reno
    flow.cwnd = max(flow.cwnd, flow.w_reno)


@compiled
def _end_scalable_round(flow: Rows, size: int, now: int) -> None:
    """Once a (virtual) round trip the marked fraction moves a sixteenth of the way."""
    flow.round_acked += size
    if now < flow.round_end:
        return
    share = min(flow.round_marked / flow.round_acked, 1.0)
    flow.mark_share += _MARK_GAIN * (share - flow.mark_share)
    flow.round_acked = 0.0
    flow.round_marked = 0.0
    length = max(flow.srtt, _VIRTUAL_RTT) if flow.cc == PRAGUE else flow.srtt
    flow.round_end = now + int(length)


@compiled
def _bandwidth(flow: Rows) -> float:
    return float(max(flow.bw_now, flow.bw_before))


@compiled
def _bbr_gain(flow: Rows) -> float:
    if flow.mode == _STARTUP:
        return _BBR_HIGH
    if flow.mode == _DRAIN:
        return 1.0 / _BBR_HIGH
    if flow.mode == _PROBE_RTT or flow.cycle > 1:
        return 1.0
    return 1.25 if flow.cycle == 0 else 0.75


@compiled
def _bbr_acked(flow: Rows, rtt: float, rate: float, sent_in_round: int, now: int) -> None:
    if sent_in_round >= flow.round_delivered:
        flow.round_delivered = flow.delivered
        _bbr_round(flow)
    flow.bw_now = max(flow.bw_now, rate)
    expired = now - flow.min_rtt_t > _BBR_MIN_RTT_AGE
    if rtt <= flow.min_rtt or expired:
        flow.min_rtt, flow.min_rtt_t = rtt, now
    bdp = _bandwidth(flow) * flow.min_rtt
    _bbr_move(flow, bdp, expired, now)
    gain = _BBR_HIGH if flow.mode <= _DRAIN else 2.0
    floor = 4.0 * flow.size
    if flow.mode == _PROBE_RTT:
        flow.cwnd = floor
    else:
        flow.cwnd = min(max(gain * bdp, flow.cwnd if flow.mode == _STARTUP else floor), flow.rwnd)


@compiled
def _bbr_round(flow: Rows) -> None:
    """Once a round trip: age the bandwidth filter, and see whether start-up has filled the pipe."""
    flow.rounds += 1
    if flow.rounds % (_BBR_ROUNDS // 2) == 0:
        flow.bw_before, flow.bw_now = flow.bw_now, 0.0
    if flow.mode == _STARTUP:
        if _bandwidth(flow) > 1.25 * flow.bw_full:
            flow.bw_full, flow.full_rounds = _bandwidth(flow), 0
        else:
            flow.full_rounds += 1


@compiled
def _bbr_move(flow: Rows, bdp: float, expired: bool, now: int) -> None:
    """The state machine: start-up, drain, cruise in cycles of eight, look at the empty path."""
    if expired and flow.mode == _CRUISE:
        flow.mode, flow.cycle_t = _PROBE_RTT, now
    elif flow.mode == _STARTUP and flow.full_rounds >= 3:
        flow.mode = _DRAIN
    elif flow.mode == _DRAIN and flow.inflight <= bdp:
        flow.mode, flow.cycle, flow.cycle_t = _CRUISE, 2, now
    elif flow.mode == _CRUISE and now - flow.cycle_t > flow.min_rtt:
        flow.cycle, flow.cycle_t = (flow.cycle + 1) % 8, now
    elif flow.mode == _PROBE_RTT and now - flow.cycle_t > _BBR_PROBE_TIME:
        flow.mode, flow.cycle, flow.cycle_t = _CRUISE, 2, now
