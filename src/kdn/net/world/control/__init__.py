"""Congestion rules: how fast a flow may send. A rule is a file here and its place in `RULES`.

May be imported by `net`.  Start reading at `rule.py`, then `reno.py`.
"""

from __future__ import annotations

from kdn.net.world.compiled import by_code
from kdn.net.world.control.bbr import BBR
from kdn.net.world.control.cubic import CUBIC
from kdn.net.world.control.reno import RENO
from kdn.net.world.control.rule import Rule
from kdn.net.world.control.scalable import DCTCP, PRAGUE
from kdn.net.world.control.unresponsive import UNRESPONSIVE

__all__ = ["RULES", "Rule", "on_acked", "on_lost", "on_marked", "on_timeout", "pacing_rate"]

RULES = (RENO, CUBIC, DCTCP, PRAGUE, BBR, UNRESPONSIVE)
"""A flow's `cc` is its rule's place here."""

on_acked = by_code(
    "on_acked",
    "flow.cc",
    "flow, size, grown, rtt, rate, sent_in_round, now",
    [rule.on_acked for rule in RULES],
    __file__,
)
on_marked = by_code(
    "on_marked",
    "flow.cc",
    "flow, sent_ecn, size, t_send, now",
    [rule.on_marked for rule in RULES],
    __file__,
)
on_lost = by_code(
    "on_lost", "flow.cc", "flow, t_send, now", [rule.on_lost for rule in RULES], __file__
)
on_timeout = by_code(
    "on_timeout", "flow.cc", "flow, now", [rule.on_timeout for rule in RULES], __file__
)
pacing_rate = by_code(
    "pacing_rate", "flow.cc", "flow", [rule.pacing_rate for rule in RULES], __file__
)
