"""Integers only: who waits, who is next, who goes in."""

from __future__ import annotations

from kdn.schedule.families import Families
from kdn.schedule.named import POLICIES, make_policy
from kdn.schedule.packing import pack
from kdn.schedule.policy import Fcfs, Policy, Priority
from kdn.schedule.queue import Decision, WaitingRoom, replay
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
    "Decision",
    "Ended",
    "Families",
    "Fcfs",
    "HighestRatio",
    "LongestMatch",
    "Policy",
    "PrefixCache",
    "PrefixJob",
    "Priority",
    "ShortestMiss",
    "StaticShortest",
    "WaitingRoom",
    "make_policy",
    "pack",
    "replay",
    "simulate",
]
