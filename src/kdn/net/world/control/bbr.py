"""BBR in the shape of version 1 (draft-cardwell-iccrg-bbr-congestion-control-00), without its policer parts.

The window is twice the bandwidth-delay product, from the greatest delivery rate of some ten rounds and the
least round trip of ten seconds; losses and marks are not looked at.
"""

from __future__ import annotations

from kdn.net.world.compiled import compiled
from kdn.net.world.control.rule import Rule, ignore_loss, ignore_mark
from kdn.net.world.records import MS, SECOND, Rows

__all__ = ["BBR"]

_STARTUP, _DRAIN, _CRUISE, _PROBE_RTT = 0, 1, 2, 3
_HIGH_GAIN = 2.885
"""2 / ln 2: doubles the rate each round."""
_ROUNDS = 10
_MIN_RTT_AGE = 10 * SECOND
_PROBE_TIME = 200 * MS


@compiled
def pacing_rate(flow: Rows) -> float:
    """The gain of the phase times the bandwidth; the first window over a round trip before that."""
    if flow.bw_now <= 0.0 and flow.bw_before <= 0.0:
        return float(_HIGH_GAIN * flow.cwnd / flow.srtt) if flow.srtt > 0 else 0.0
    return _gain(flow) * _bandwidth(flow)


@compiled
def _bandwidth(flow: Rows) -> float:
    return float(max(flow.bw_now, flow.bw_before))


@compiled
def _gain(flow: Rows) -> float:
    if flow.mode == _STARTUP:
        return _HIGH_GAIN
    if flow.mode == _DRAIN:
        return 1.0 / _HIGH_GAIN
    if flow.mode == _PROBE_RTT or flow.cycle > 1:
        return 1.0
    return 1.25 if flow.cycle == 0 else 0.75


@compiled
def on_acked(
    flow: Rows, size: int, grown: int, rtt: float, rate: float, sent_in_round: int, now: int
) -> None:
    """Take the rate and the round trip into the model; set the window by it."""
    if sent_in_round >= flow.round_delivered:
        flow.round_delivered = flow.delivered
        _end_round(flow)
    flow.bw_now = max(flow.bw_now, rate)
    expired = now - flow.min_rtt_t > _MIN_RTT_AGE
    if rtt <= flow.min_rtt or expired:
        flow.min_rtt, flow.min_rtt_t = rtt, now
    bdp = _bandwidth(flow) * flow.min_rtt
    _move(flow, bdp, expired, now)
    gain = _HIGH_GAIN if flow.mode <= _DRAIN else 2.0
    floor = 4.0 * flow.size
    if flow.mode == _PROBE_RTT:
        flow.cwnd = floor
    else:
        flow.cwnd = min(max(gain * bdp, flow.cwnd if flow.mode == _STARTUP else floor), flow.rwnd)


@compiled
def _end_round(flow: Rows) -> None:
    """Once a round trip: age the bandwidth filter, and see whether start-up has filled the pipe."""
    flow.rounds += 1
    if flow.rounds % (_ROUNDS // 2) == 0:
        flow.bw_before, flow.bw_now = flow.bw_now, 0.0
    if flow.mode == _STARTUP:
        if _bandwidth(flow) > 1.25 * flow.bw_full:
            flow.bw_full, flow.full_rounds = _bandwidth(flow), 0
        else:
            flow.full_rounds += 1


@compiled
def _move(flow: Rows, bdp: float, expired: bool, now: int) -> None:
    """The state machine: start-up, drain, cruise in cycles of eight, measure the empty path."""
    if expired and flow.mode == _CRUISE:
        flow.mode, flow.cycle_t = _PROBE_RTT, now
    elif flow.mode == _STARTUP and flow.full_rounds >= 3:
        flow.mode = _DRAIN
    elif flow.mode == _DRAIN and flow.inflight <= bdp:
        flow.mode, flow.cycle, flow.cycle_t = _CRUISE, 2, now
    elif flow.mode == _CRUISE and now - flow.cycle_t > flow.min_rtt:
        flow.cycle, flow.cycle_t = (flow.cycle + 1) % 8, now
    elif flow.mode == _PROBE_RTT and now - flow.cycle_t > _PROBE_TIME:
        flow.mode, flow.cycle, flow.cycle_t = _CRUISE, 2, now


BBR = Rule(
    "bbr",
    on_acked,
    ignore_mark,
    ignore_loss,
    pacing_rate=pacing_rate,
    restarts_after_idle=False,
    keeps_min_rtt=True,
)
