"""CUBIC (RFC 9438): the window follows a cubic of the time since the last loss, around its old peak."""

from __future__ import annotations

import numpy as np

from kdn.net.world.compiled import compiled
from kdn.net.world.control.rule import Rule, restart
from kdn.net.world.records import SECOND, Rows

__all__ = ["CUBIC"]

_C = 0.4
_BETA = 0.7


@compiled
def on_acked(
    flow: Rows, size: int, grown: int, rtt: float, rate: float, sent_in_round: int, now: int
) -> None:
    """Slow start below the threshold; above it toward the cubic of one round trip ahead.

    Time in which the application was the limit does not count (4.2).
    """
    if flow.cwnd < flow.ssthresh:
        flow.cwnd += grown
    elif grown > 0:
        _follow_cubic(flow, grown, now - flow.unfilled)
    flow.cwnd = min(flow.cwnd, flow.rwnd)


@compiled
def _follow_cubic(flow: Rows, size: int, now: int) -> None:
    """Sections 4.2 to 4.5: the target is at most 1.5 windows, and never below what Reno would have."""
    window, mss = flow.cwnd / flow.size, flow.size
    if flow.epoch == 0:
        flow.epoch = now
        w_max = flow.w_max / mss
        flow.k_cubic = np.cbrt(max(w_max - window, 0.0) / _C)
        flow.w_max = max(flow.w_max, flow.cwnd)
        flow.w_reno = flow.cwnd
    t = (now - flow.epoch + flow.srtt) / SECOND - flow.k_cubic
    target = _C * t * t * t + flow.w_max / mss
    target = min(max(target, window), 1.5 * window)
    flow.cwnd += (target - window) / window * size
    prior = flow.ssthresh / _BETA  # the window at the last response
    gain = 3.0 * (1.0 - _BETA) / (1.0 + _BETA) if flow.w_reno < prior else 1.0
    flow.w_reno += gain * size / window
    flow.cwnd = max(flow.cwnd, flow.w_reno)


@compiled
def _reduce(flow: Rows, now: int) -> None:
    """Times 0.7, remembering the peak; a lower peak than the last gives way faster (4.6, 4.7)."""
    flow.recovery = now
    flow.w_max = flow.cwnd * 0.85 if flow.cwnd < flow.w_max else flow.cwnd
    flow.epoch = 0
    flow.cwnd = max(flow.cwnd * _BETA, 2.0 * flow.size)
    flow.ssthresh = flow.cwnd


@compiled
def on_marked(flow: Rows, sent_ecn: int, size: int, t_send: int, now: int) -> None:
    """A mark counts as a loss."""
    if t_send >= flow.recovery:
        _reduce(flow, now)


@compiled
def on_lost(flow: Rows, t_send: int, now: int) -> None:
    """One response covers everything sent before it."""
    if t_send >= flow.recovery:
        _reduce(flow, now)


@compiled
def on_timeout(flow: Rows, now: int) -> None:
    """Slow start up to 0.7 windows; the cubic after it begins at its own peak (4.8)."""
    restart(flow, _BETA, now)


CUBIC = Rule("cubic", on_acked, on_marked, on_lost, on_timeout)
