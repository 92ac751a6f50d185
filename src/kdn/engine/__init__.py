"""The executor that runs every plan, and the step loop that feeds it."""

from __future__ import annotations

from kdn.engine.admission import plain
from kdn.engine.capture import Capture
from kdn.engine.engine import Engine, EngineStat
from kdn.engine.executor import Pass
from kdn.engine.kv import KvBudget, PrefixKV, PrefixPool, SequenceKV, SuffixKV
from kdn.engine.limits import EngineLimits, JobMemory
from kdn.engine.onetoken import counted_memory, measured_memory
from kdn.engine.sampling import DrawnToken, Sampler
from kdn.engine.slice import SequenceSlice
from kdn.engine.stream import RunningStream

__all__ = [
    "Capture",
    "DrawnToken",
    "Engine",
    "EngineLimits",
    "EngineStat",
    "JobMemory",
    "KvBudget",
    "Pass",
    "PrefixKV",
    "PrefixPool",
    "RunningStream",
    "Sampler",
    "SequenceKV",
    "SequenceSlice",
    "SuffixKV",
    "counted_memory",
    "measured_memory",
    "plain",
]
