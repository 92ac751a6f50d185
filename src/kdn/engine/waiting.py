"""Requests that wait: their places in the request queue, and how much of each is stored by now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from kdn.core import Job, Planner, Retention
from kdn.engine.request import RunningRequest
from kdn.engine.retention import family_name, shared_tokens
from kdn.schedule import RequestQueue

__all__ = ["WaitingRequests"]


class WaitingRequests:
    """Owns the requests that wait, and asks for a look at them only when it could change something."""

    def __init__(self, queue: RequestQueue, planner: Planner, pack_tokens: int | None) -> None:
        self._queue = queue
        self._planner = planner
        self._pack_tokens = pack_tokens
        self._requests: dict[str, RunningRequest] = {}
        self._nothing_fits = False
        """Admission was refused, and nothing has come or gone since."""
        self._has_retained = False
        """KV was handed out to be stored since the waiting were last looked up."""

    def __len__(self) -> int:
        return len(self._requests)

    def __bool__(self) -> bool:
        return bool(self._requests)

    def add(self, running: RunningRequest) -> None:
        """Take a request in. Raises what the planner raises."""
        self._queue.add(self._job(running))
        self._requests[running.id] = running
        self._nothing_fits = False

    def drop_cancelled(self) -> list[RunningRequest]:
        """Let those go that their callers withdrew."""
        gone = [running for running in self._requests.values() if running.stream.is_cancelled]
        for running in gone:
            del self._requests[running.id]
            self._queue.remove(running.id)
        return gone

    def something_changed(self) -> None:
        """A request ended or gave memory back: somebody may fit now."""
        self._nothing_fits = False

    def something_was_retained(self) -> None:
        """More may be stored of those that wait than they were filed with."""
        self._has_retained = True

    def admit(
        self, now_ns: int, enter: Callable[[Sequence[RunningRequest]], bool], *, is_busy: bool
    ) -> None:
        """Offer those that are next to `enter`, group by group, until it says no.

        With a pass under way (`is_busy`) and packing, nobody is offered: what the pass leaves in the
        store may change who is next.
        """
        if not self._requests or self._nothing_fits:
            return
        if self._pack_tokens is not None:
            if is_busy:
                return
            self._look_up_again()

        def fits(jobs: Sequence[Job]) -> bool:
            members = [self._requests[job.id] for job in jobs]
            if not enter(members):
                return False
            for running in members:
                del self._requests[running.id]
            return True

        self._queue.admit(now_ns, fits, self._pack_tokens)
        self._nothing_fits = bool(self._requests)

    def check(self) -> None:
        """Audit the accounts. Raises AssertionError."""
        self._queue.check()
        assert set(self._requests) == {job.id for job in self._queue.jobs()}, (
            "the queue and the requests that wait differ"
        )

    def _job(self, running: RunningRequest) -> Job:
        request = running.request
        num_cached = self._planner.cached_tokens(request) if request.reuse else 0
        if self._pack_tokens is not None and request.retention is not Retention.NOTHING:
            running.family = family_name(request)
        return Job(
            id=request.id,
            arrival_ns=int(running.arrived_s * 1e9),
            num_tokens=request.prompt.num_tokens,
            num_cached=num_cached,
            max_new_tokens=running.max_new_tokens,
            priority=request.priority,
            group=request.group,
            group_size=request.group_size,
            num_cached_at_arrival=num_cached,
            family=running.family,
            num_shared=shared_tokens(request),
        )

    def _look_up_again(self) -> None:
        """How much of each waiting prompt is stored now, if anything was stored since the last look.

        Requests with the same shared part are looked up once.
        """
        if not self._has_retained:
            return
        self._has_retained = False
        looked: dict[str, int] = {}
        for job in self._queue.jobs():
            running = self._requests[job.id]
            family = running.family or job.id
            if running.request.reuse and family not in looked:
                looked[family] = self._planner.cached_tokens(running.request)
            num_cached = min(looked.get(family, 0), job.num_tokens - 1)
            if num_cached != job.num_cached:
                self._queue.add(replace(job, num_cached=num_cached))
