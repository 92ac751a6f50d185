"""What a congestion rule is: five functions on a flow's row, and a few facts about it.

No function reads a clock; times are integer nanoseconds, windows bytes, rates bytes per nanosecond.
The defaults here are a window that nobody paces and the timeout of RFC 5681 (3.1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from kdn.net.world.compiled import compiled
from kdn.net.world.records import Rows

__all__ = [
    "Rule",
    "begin_again",
    "ignore",
    "ignore_ack",
    "ignore_loss",
    "ignore_mark",
    "restart",
    "unpaced",
]


@compiled
def unpaced(flow: Rows) -> float:
    """Packets follow their ACKs."""
    return 0.0


@compiled
def ignore_ack(
    flow: Rows, size: int, grown: int, rtt: float, rate: float, sent_in_round: int, now: int
) -> None:
    """Do nothing."""


@compiled
def ignore_mark(flow: Rows, sent_ecn: int, size: int, t_send: int, now: int) -> None:
    """Do nothing."""


@compiled
def ignore_loss(flow: Rows, t_send: int, now: int) -> None:
    """Do nothing."""


@compiled
def ignore(flow: Rows, now: int) -> None:
    """Do nothing."""


@compiled
def restart(flow: Rows, share: float, now: int) -> None:
    """Slow start from two packets up to `share` of the window; a second timeout in a row keeps that."""
    if flow.backoff == 0:
        flow.ssthresh = max(flow.cwnd * share, 2.0 * flow.size)
    flow.cwnd = 2.0 * flow.size
    flow.recovery = now
    flow.epoch = 0
    flow.w_max = 0.0


@compiled
def begin_again(flow: Rows, now: int) -> None:
    """Nothing came back for a retransmission timeout: half the window is the threshold."""
    restart(flow, 0.5, now)


class Rule(NamedTuple):
    """A congestion rule. Its functions are compiled."""

    name: str
    on_acked: Callable[..., None]
    """(flow, size, grown, rtt, rate, sent_in_round, now): a packet of `size` bytes was acknowledged.

    The window grows for `grown` of the bytes, which are 0 where it was not used; `rate` is the delivery
    rate that the packet saw, and `sent_in_round` the flow's delivered count when the packet was sent.
    """
    on_marked: Callable[..., None]
    """(flow, sent_ecn, size, t_send, now): the ACK says that the packet arrived with CE."""
    on_lost: Callable[..., None]
    """(flow, t_send, now): a packet sent at `t_send` was lost."""
    on_timeout: Callable[..., None] = begin_again
    """(flow, now): nothing came back for a retransmission timeout."""
    pacing_rate: Callable[..., float] = unpaced
    """(flow): bytes per nanosecond; 0 is unpaced."""
    has_window: bool = True
    """False: sends whatever the application gives, and sends nothing twice."""
    grows_on_marks: bool = True
    """False: a marked packet does not grow the window."""
    restarts_after_idle: bool = True
    """True: a window that was not used for a timeout shrinks to the initial one."""
    keeps_min_rtt: bool = False
    """True: the rule itself keeps `min_rtt`, which expires."""
    mark_share: float = 0.0
    """The marked fraction that a new flow assumes."""


def settings(rule: Rule) -> dict[str, Any]:
    """The rule's facts as fields of a FLOW row."""
    return {
        "has_window": int(rule.has_window),
        "grows_on_marks": int(rule.grows_on_marks),
        "restarts_after_idle": int(rule.restarts_after_idle),
        "keeps_min_rtt": int(rule.keeps_min_rtt),
        "mark_share": rule.mark_share,
    }
