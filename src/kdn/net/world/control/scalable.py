"""DCTCP (RFC 8257) and Prague (draft-briscoe-iccrg-prague-congestion-control): cut by the marked share.

Marks are answered by the packet's own class: CE on a packet sent as ECT(1) gets the scalable response,
CE on one sent as ECT(0) the classic one (RFC 9331, 4.3).  Prague differs from DCTCP by a round trip of at
least 25 ms in its arithmetic, by pacing, and by not growing on marked packets.
"""

from __future__ import annotations

from kdn.net.world.compiled import compiled
from kdn.net.world.control.reno import halve, on_lost
from kdn.net.world.control.rule import Rule
from kdn.net.world.records import ECT1, MS, Rows

__all__ = ["DCTCP", "PRAGUE"]

_VIRTUAL_RTT = 25.0 * MS
_MARK_GAIN = 1.0 / 16.0


@compiled
def _note_acked(flow: Rows, size: int, round_ns: float, now: int) -> None:
    """Once a round the marked share moves a sixteenth of the way (RFC 8257, 3.3)."""
    flow.round_acked += size
    if now < flow.round_end:
        return
    share = min(flow.round_marked / flow.round_acked, 1.0)
    flow.mark_share += _MARK_GAIN * (share - flow.mark_share)
    flow.round_acked = 0.0
    flow.round_marked = 0.0
    flow.round_end = now + int(round_ns)


@compiled
def _note_marked(
    flow: Rows, sent_ecn: int, size: int, t_send: int, round_ns: float, now: int
) -> None:
    """At most one cut by half the marked share per round (RFC 8257, 3.4)."""
    if sent_ecn != ECT1:
        if t_send >= flow.recovery:
            halve(flow, now)
        return
    flow.round_marked += size
    if flow.cwnd < flow.ssthresh:
        flow.mark_share = max(flow.mark_share, 0.5)  # the first mark ends slow start firmly
    if now - flow.reduced >= round_ns:
        flow.reduced = now
        flow.cwnd = max(flow.cwnd * (1.0 - flow.mark_share / 2.0), 2.0 * flow.size)
        flow.ssthresh = flow.cwnd


@compiled
def _dctcp_acked(
    flow: Rows, size: int, grown: int, rtt: float, rate: float, sent_in_round: int, now: int
) -> None:
    _note_acked(flow, size, flow.srtt, now)
    if flow.cwnd < flow.ssthresh:
        flow.cwnd += grown
    else:
        flow.cwnd += flow.size * grown / flow.cwnd
    flow.cwnd = min(flow.cwnd, flow.rwnd)


@compiled
def _dctcp_marked(flow: Rows, sent_ecn: int, size: int, t_send: int, now: int) -> None:
    _note_marked(flow, sent_ecn, size, t_send, flow.srtt, now)


@compiled
def _prague_acked(
    flow: Rows, size: int, grown: int, rtt: float, rate: float, sent_in_round: int, now: int
) -> None:
    """Growth is that of a flow with the virtual round trip, so that short paths take no more."""
    _note_acked(flow, size, max(flow.srtt, _VIRTUAL_RTT), now)
    if flow.cwnd < flow.ssthresh:
        flow.cwnd += grown
    else:
        slower = min(1.0, flow.srtt / _VIRTUAL_RTT)
        flow.cwnd += slower * slower * flow.size * grown / flow.cwnd
    flow.cwnd = min(flow.cwnd, flow.rwnd)


@compiled
def _prague_marked(flow: Rows, sent_ecn: int, size: int, t_send: int, now: int) -> None:
    _note_marked(flow, sent_ecn, size, t_send, max(flow.srtt, _VIRTUAL_RTT), now)


@compiled
def _prague_pace(flow: Rows) -> float:
    if flow.srtt <= 0:
        return 0.0
    gain = 2.0 if flow.cwnd < flow.ssthresh else 1.03
    return float(gain * flow.cwnd / flow.srtt)


DCTCP = Rule("dctcp", _dctcp_acked, _dctcp_marked, on_lost, mark_share=1.0)
PRAGUE = Rule(
    "prague",
    _prague_acked,
    _prague_marked,
    on_lost,
    pacing_rate=_prague_pace,
    grows_on_marks=False,
    mark_share=1.0,
)
