"""The executor that runs every plan, and the step loop that feeds it."""

from __future__ import annotations

from kdn.engine.admission import plain
from kdn.engine.capture import Capture
from kdn.engine.engine import Engine, EngineStat
from kdn.engine.executor import Pass
from kdn.engine.kv import Head, HeadPool, KvBudget, SequenceKV, Tail
from kdn.engine.lane import Lane
from kdn.engine.limits import JobMemory, Limits
from kdn.engine.onetoken import counted_memory, measured_memory
from kdn.engine.sampling import Drawn, Sampler
from kdn.engine.stream import LiveStream

__all__ = [
    "Capture",
    "Drawn",
    "Engine",
    "EngineStat",
    "Head",
    "HeadPool",
    "JobMemory",
    "KvBudget",
    "Lane",
    "Limits",
    "LiveStream",
    "Pass",
    "Sampler",
    "SequenceKV",
    "Tail",
    "counted_memory",
    "measured_memory",
    "plain",
]
