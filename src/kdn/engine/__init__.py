"""The executor that runs every plan, and the step loop that feeds it."""

from __future__ import annotations

from kdn.engine.admission import plain
from kdn.engine.alone import AloneRun, HeldKV, run_alone, steps_alone
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
    "AloneRun",
    "Capture",
    "DrawnToken",
    "Engine",
    "EngineLimits",
    "EngineStat",
    "HeldKV",
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
    "run_alone",
    "steps_alone",
]
