"""A new schedule policy and a new benchmark are one file and one line each: the rest learns them by name.

The same is shown of a codec, an eviction policy and a tier in `store/test_registries.py`, of a congestion
rule and a queue in `net/test_new_rule.py`, and of a technique in `reuse/test_stack.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kdn.bench import BENCHES, BenchOptions, Result, load_bench
from kdn.config import EngineConfig
from kdn.core import Job
from kdn.errors import BadConfig, BadInput
from kdn.schedule import POLICIES, RequestQueue, SchedulePolicy, make_policy


class Lcfs(SchedulePolicy):
    """Last come, first served."""

    name = "lcfs"

    def order(self, jobs: Sequence[Job], now_ns: int) -> list[Job]:
        return sorted(jobs, key=lambda job: -job.arrival_ns)


def test_a_schedule_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadConfig, match=r"'lcfs'; it can be fcfs"):
        EngineConfig(policy="lcfs")
    monkeypatch.setitem(POLICIES, "lcfs", Lcfs)
    waiting = RequestQueue(make_policy(EngineConfig(policy="lcfs").policy))
    for second in (1, 2, 3):
        waiting.add(Job(str(second), second, num_tokens=1, num_cached=0, max_new_tokens=1))
    assert [job.id for job in waiting.admit(4, lambda _: True)] == ["3", "2", "1"]


def run(options: BenchOptions) -> Result:
    """Does a benchmark that is this file run?"""
    return Result("made-up", "none", {"seed": options.seed}, [], {"answer": 42.0})


def test_a_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="no benchmark 'made-up'; there are blend"):
        load_bench("made-up")
    monkeypatch.setitem(BENCHES, "made-up", __name__)
    result = load_bench("made-up")(BenchOptions(seed=7))
    assert (result.as_json()["bench"], result.summary) == ("made-up", {"answer": 42.0})
