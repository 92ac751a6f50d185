"""Queues: what waits at a hop, and what is marked or dropped.

A queue is a file here and its place in `QUEUES`.  May be imported by `net`.  Start reading at
`discipline.py`, then `droptail.py`.
"""

from __future__ import annotations

from kdn.net.world.compiled import by_code
from kdn.net.world.queue.discipline import Discipline
from kdn.net.world.queue.droptail import DROPTAIL
from kdn.net.world.queue.dualpi2 import DUALPI2
from kdn.net.world.queue.fqcodel import FQ_CODEL

__all__ = ["QUEUES", "Discipline", "dequeue", "enqueue", "update"]

QUEUES = (DROPTAIL, FQ_CODEL, DUALPI2)
"""A hop's `aqm` is its queue's place here."""

_CODE = "state.hops[hop].aqm"

enqueue = by_code(
    "enqueue", _CODE, "state, hop, packet, now", [queue.enqueue for queue in QUEUES], __file__
)
dequeue = by_code(
    "dequeue", _CODE, "state, hop, now", [queue.dequeue for queue in QUEUES], __file__
)
update = by_code("update", _CODE, "state, hop, now", [queue.update for queue in QUEUES], __file__)
