"""Integers only: which jobs wait, which is next, which are let in.

It trades in jobs (`kdn.core.Job`) and orders of them; the engine, api and bench import it.  Start reading at
`queue.py`.  A new policy is one file and its line in `named.py`.
"""

from __future__ import annotations

from kdn.schedule.families import Families
from kdn.schedule.named import POLICIES, make_policy
from kdn.schedule.packing import pack
from kdn.schedule.preflow import Preflow
from kdn.schedule.queue import (
    Fcfs,
    Priority,
    RequestQueue,
    ScheduleDecision,
    SchedulePolicy,
    replay,
)
from kdn.schedule.shortest import (
    Calibrated,
    HighestRatio,
    LongestMatch,
    ShortestMiss,
    StaticShortest,
)
from kdn.schedule.simulate import Ended, PrefixCache, PrefixJob, simulate

__all__ = [
    "POLICIES",
    "Calibrated",
    "Ended",
    "Families",
    "Fcfs",
    "HighestRatio",
    "LongestMatch",
    "PrefixCache",
    "PrefixJob",
    "Preflow",
    "Priority",
    "RequestQueue",
    "ScheduleDecision",
    "SchedulePolicy",
    "ShortestMiss",
    "StaticShortest",
    "make_policy",
    "pack",
    "replay",
    "simulate",
]
