"""Every policy by its name."""

from __future__ import annotations

from kdn.core import JctModel
from kdn.schedule.families import Families
from kdn.schedule.queue import Fcfs, Priority, SchedulePolicy
from kdn.schedule.shortest import (
    Calibrated,
    Costed,
    HighestRatio,
    LongestMatch,
    ShortestMiss,
    StaticShortest,
)

__all__ = ["POLICIES", "make_policy"]

_ALL: tuple[type[SchedulePolicy], ...] = (
    Fcfs,
    Priority,
    LongestMatch,
    StaticShortest,
    ShortestMiss,
    Calibrated,
    Families,
    HighestRatio,
)
POLICIES: dict[str, type[SchedulePolicy]] = {kind.name: kind for kind in _ALL}


def make_policy(name: str, model: JctModel | None = None) -> SchedulePolicy:
    """The policy of that name, with a fitted model where it can use one."""
    kind = POLICIES[name]
    return kind(model) if issubclass(kind, Costed) else kind()
