"""Integers only: who waits, who is next, who goes in."""

from __future__ import annotations

from kdn.schedule.families import Families
from kdn.schedule.named import POLICIES, make_policy
from kdn.schedule.packing import pack
from kdn.schedule.policy import Fcfs, Priority, SchedulePolicy
from kdn.schedule.queue import RequestQueue, ScheduleDecision, replay
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
