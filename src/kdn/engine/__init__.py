"""The executor that runs every plan, and the step loop that feeds it.

It trades in requests and plans, in streams of tokens, and in KV while it runs.  The rooms above it may
import it: reuse, calibration, api, serve, bench.  Start reading at `loop.py`, then `executor.py`.
"""

from __future__ import annotations

from kdn.engine.admission import plain
from kdn.engine.alone import AloneRun, HeldKV, run_alone, steps_alone
from kdn.engine.batch import SequenceSlice
from kdn.engine.budget import KvBudget, KvPool, PrefixPool
from kdn.engine.engine import Engine, EngineStat, all_idle
from kdn.engine.executor import Pass
from kdn.engine.kv import Capture, PrefixKV, SequenceKV, SuffixKV, kv_shape
from kdn.engine.limits import EngineLimits, JobMemory, counted_memory, measured_memory
from kdn.engine.passes import SMALL_PREFIX
from kdn.engine.request import RunningStream
from kdn.engine.sampling import DrawnToken, Sampler
from kdn.engine.states import MOVES, RequestState

__all__ = [
    "MOVES",
    "SMALL_PREFIX",
    "AloneRun",
    "Capture",
    "DrawnToken",
    "Engine",
    "EngineLimits",
    "EngineStat",
    "HeldKV",
    "JobMemory",
    "KvBudget",
    "KvPool",
    "Pass",
    "PrefixKV",
    "PrefixPool",
    "RequestState",
    "RunningStream",
    "Sampler",
    "SequenceKV",
    "SequenceSlice",
    "SuffixKV",
    "all_idle",
    "counted_memory",
    "kv_shape",
    "measured_memory",
    "plain",
    "run_alone",
    "steps_alone",
]
