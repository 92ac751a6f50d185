"""Reno (RFC 5681): a packet more per round trip, half the window at a loss or a mark."""

from __future__ import annotations

from kdn.net.world.compiled import compiled
from kdn.net.world.control.rule import Rule
from kdn.net.world.records import Rows

__all__ = ["RENO", "halve", "halve_once", "on_lost"]


@compiled
def on_acked(
    flow: Rows, size: int, grown: int, rtt: float, rate: float, sent_in_round: int, now: int
) -> None:
    """Slow start below the threshold, a packet per window above it (3.1)."""
    if flow.cwnd < flow.ssthresh:
        flow.cwnd += grown
    else:
        flow.cwnd += flow.size * grown / flow.cwnd
    flow.cwnd = min(flow.cwnd, flow.rwnd)


@compiled
def halve(flow: Rows, now: int) -> None:
    """Half the window, but never below two packets; later losses of this round are covered."""
    flow.recovery = now
    flow.cwnd = max(flow.cwnd * 0.5, 2.0 * flow.size)
    flow.ssthresh = flow.cwnd


@compiled
def halve_once(flow: Rows, sent_ecn: int, size: int, t_send: int, now: int) -> None:
    """A mark counts as a loss (RFC 3168, 6.1.2): one response covers everything sent before it."""
    if t_send >= flow.recovery:
        halve(flow, now)


@compiled
def on_lost(flow: Rows, t_send: int, now: int) -> None:
    """One response covers everything sent before it."""
    if t_send >= flow.recovery:
        halve(flow, now)


RENO = Rule("reno", on_acked, halve_once, on_lost)
