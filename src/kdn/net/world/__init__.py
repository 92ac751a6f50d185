"""A packet-level world: links, queues, senders and time, as rows of numbers and compiled rules.

May be imported by `net` and by benchmarks.  Start reading at `spec.py` (a world in words), `loop.py` (the
events), then `control/` and `queue/`, where a congestion rule and a queue are one file each.
"""

from kdn.net.world.records import CE, ECT0, ECT1
from kdn.net.world.spec import (
    App,
    Flow,
    Hop,
    Queue,
    Scenario,
    bulk,
    frames,
    steady,
    web,
)
from kdn.net.world.traces import RateTrace, constant, read_link, read_mahimahi, read_throughput
from kdn.net.world.world import (
    Chooser,
    ChooserAnswer,
    ChooserQuestion,
    World,
)

__all__ = [
    "CE",
    "ECT0",
    "ECT1",
    "App",
    "Chooser",
    "ChooserAnswer",
    "ChooserQuestion",
    "Flow",
    "Hop",
    "Queue",
    "RateTrace",
    "Scenario",
    "World",
    "bulk",
    "constant",
    "frames",
    "read_link",
    "read_mahimahi",
    "read_throughput",
    "steady",
    "web",
]
