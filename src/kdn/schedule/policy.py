"""Who is next. A policy sees integers, reads no clock and keeps no state of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from kdn.core import Job

__all__ = ["Fcfs", "Priority", "SchedulePolicy"]


class SchedulePolicy(ABC):
    """Puts waiting jobs in order. Equal input gives equal output, on every machine."""

    name: str

    @abstractmethod
    def order(self, jobs: Sequence[Job], now_ns: int) -> list[Job]:
        """All of `jobs`, the first to be run first."""


class Fcfs(SchedulePolicy):
    """First come, first served: the dull twin that every other policy is measured against."""

    name = "fcfs"

    def order(self, jobs: Sequence[Job], now_ns: int) -> list[Job]:
        return sorted(jobs, key=lambda job: (job.arrival_ns, job.id))


class Priority(SchedulePolicy):
    """Lower priority numbers first, and first come, first served among equals."""

    name = "priority"

    def order(self, jobs: Sequence[Job], now_ns: int) -> list[Job]:
        return sorted(jobs, key=lambda job: (job.priority, job.arrival_ns, job.id))
