"""The request queue: jobs come in, the policy orders them, and those that fit the budget go out.

Admission is strict: the first job in order that does not fit stops the others after it, so that small
jobs cannot overtake a large one for ever.  Jobs of one group are admitted together.

A policy sees integers, reads no clock and has no state of its own.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from kdn.core import Job
from kdn.schedule.packing import pack

__all__ = ["Fcfs", "Priority", "RequestQueue", "ScheduleDecision", "SchedulePolicy", "replay"]

_log = logging.getLogger(__name__)
_MOST_GONE = 1024
"""Groups that lost a job and of which none waits: the others may still come, and of more are forgotten."""


class SchedulePolicy(ABC):
    """Puts waiting jobs in order. Equal input gives equal output, on every machine."""

    name: str

    @abstractmethod
    def order(self, jobs: Sequence[Job], now_ns: int) -> list[Job]:
        """All of `jobs`, the first to be run first."""


class Fcfs(SchedulePolicy):
    """First come, first served: the plain twin that every other policy is measured against."""

    name = "fcfs"

    def order(self, jobs: Sequence[Job], now_ns: int) -> list[Job]:
        return sorted(jobs, key=lambda job: (job.arrival_ns, job.id))


class Priority(SchedulePolicy):
    """Lower priority numbers first, and first come, first served among equals."""

    name = "priority"

    def order(self, jobs: Sequence[Job], now_ns: int) -> list[Job]:
        return sorted(jobs, key=lambda job: (job.priority, job.arrival_ns, job.id))


@dataclass(frozen=True)
class ScheduleDecision:
    """What was decided at one moment: which jobs waited, in which order, and which went in."""

    now_ns: int
    order: tuple[str, ...]
    admitted: tuple[str, ...]
    jobs: tuple[Job, ...] = ()
    """All that waited, as the policy saw them: enough to decide again."""


class RequestQueue:
    """Owns the queue. Every decision can be recorded, and replayed after a change of code.

    A policy or a recorder that raises is not asked again: the queue goes on as first come, first served,
    or without a record.
    """

    def __init__(
        self, policy: SchedulePolicy, record: Callable[[ScheduleDecision], None] | None = None
    ) -> None:
        self._policy = policy
        self._record = record
        self._jobs: dict[str, Job] = {}
        self._gone: dict[str, int] = {}
        """How many of a group will never come."""
        self._held_back: set[str] = set()
        """Jobs that let one of their family compute what they share, once: it may not be retained."""

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._jobs

    def add(self, job: Job) -> None:
        """Take a job in, or put fresh numbers in place of those known of it."""
        self._jobs[job.id] = job

    def remove(self, job_id: str) -> None:
        """Forget a job; nothing happens if it is not here."""
        self._jobs.pop(job_id, None)
        self._held_back.discard(job_id)

    def withdraw(self, job_id: str, group: str | None, group_size: int) -> None:
        """Forget a job that will never run. The rest of its group waits for it no longer."""
        self.remove(job_id)
        if group is not None:
            self._gone[group] = self._gone.get(group, 0) + 1
            if self._gone[group] >= group_size:
                del self._gone[group]
            self._forget_groups()

    def clear(self) -> None:
        """Forget every job."""
        self._gone.clear()
        self._jobs.clear()
        self._held_back.clear()

    def jobs(self) -> list[Job]:
        """All that wait, in order of coming in."""
        return list(self._jobs.values())

    def admit(
        self,
        now_ns: int,
        fits: Callable[[Sequence[Job]], bool],
        pack_tokens: int | None = None,
        waits: Callable[[Job], bool] = lambda _: False,
    ) -> list[Job]:
        """Let jobs in, in order, as long as `fits` says yes, which also sets memory aside.

        `fits` is asked with a whole group together; a group that is not complete yet waits without
        holding up others, and so does a job without a group as long as it `waits`.  With `pack_tokens`
        only jobs that share the next pass are let in.
        """
        if not self._jobs:
            return []
        waiting = self.jobs()
        ordered = self._ordered(waiting, now_ns)
        ready = self._complete(ordered)
        admitted: list[Job] = []
        for job in ready if pack_tokens is None else pack(ready, pack_tokens, self._patient):
            if job.id not in self._jobs or (job.group is None and waits(job)):
                continue
            members = [job]
            if job.group is not None:
                members = [
                    one for one in ordered if one.group == job.group and one.id in self._jobs
                ]
            if not fits(members):
                break
            for member in members:
                self.remove(member.id)
            if job.group is not None:
                self._gone.pop(job.group, None)
            admitted += members
        order, went = tuple(j.id for j in ordered), tuple(j.id for j in admitted)
        self._note(ScheduleDecision(now_ns, order, went, tuple(waiting)))
        return admitted

    def _forget_groups(self) -> None:
        """Keep no more groups than may be: the others of a group may never be sent."""
        if len(self._gone) > _MOST_GONE:
            waiting = {job.group for job in self._jobs.values()}
            absent = [group for group in self._gone if group not in waiting]
            for group in absent[:-_MOST_GONE]:
                del self._gone[group]

    def _ordered(self, waiting: Sequence[Job], now_ns: int) -> list[Job]:
        try:
            ordered = _in_order(self._policy, waiting, now_ns)
            if sorted(job.id for job in ordered) == sorted(self._jobs):
                return ordered
            _log.error("policy %s lost or invented jobs; first come, first served", self._policy)
        except Exception:  # noqa: BLE001  a policy may fail in any way
            _log.exception("policy %s failed; first come, first served", self._policy)
        self._policy = Fcfs()
        return _in_order(self._policy, waiting, now_ns)

    def _note(self, decision: ScheduleDecision) -> None:
        if self._record is None:
            return
        try:
            self._record(decision)
        except Exception:  # noqa: BLE001  a recorder may fail in any way
            _log.exception("decisions cannot be recorded; no more are")
            self._record = None

    def _patient(self, job: Job) -> bool:
        """True the first time: jobs of a group never wait for others of their family."""
        if job.group is not None or job.id in self._held_back:
            return False
        self._held_back.add(job.id)
        return True

    def _complete(self, ordered: Sequence[Job]) -> list[Job]:
        """Those whose group has come whole: the others must take no place in a pass that they cannot join."""
        here = Counter(job.group for job in ordered)
        return [
            job
            for job in ordered
            if job.group is None or here[job.group] + self._gone.get(job.group, 0) >= job.group_size
        ]

    def check(self) -> None:
        """Audit the accounts. Raises AssertionError."""
        assert all(key == job.id for key, job in self._jobs.items()), (
            "a job is filed under another's name"
        )
        assert self._held_back <= self._jobs.keys(), "a job is held back that is not here"


def _in_order(policy: SchedulePolicy, jobs: Sequence[Job], now_ns: int) -> list[Job]:
    """As the policy says, with those in the background after the others."""
    return sorted(policy.order(jobs, now_ns), key=lambda job: job.background)


def replay(decisions: Sequence[ScheduleDecision], policy: SchedulePolicy) -> list[ScheduleDecision]:
    """Those recorded decisions whose order `policy` would change, as it makes them now."""
    changed = []
    for decision in decisions:
        order = tuple(job.id for job in _in_order(policy, decision.jobs, decision.now_ns))
        if order != decision.order:
            changed.append(replace(decision, order=order))
    return changed
