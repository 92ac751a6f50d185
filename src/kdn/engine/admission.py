"""Which requests wait, which are let in, and what each holds while it runs: plan, memory, buffers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from kdn.core import Job, Plan, Planned, Planner, Request, Retention
from kdn.engine.alike import waits_for_another
from kdn.engine.budget import KvBudget, PrefixPool
from kdn.engine.kv import (
    EXTENT,
    Capture,
    PrefixKV,
    SequenceKV,
    SuffixKV,
    check_room,
    extents,
    family_name,
    kv_shape,
    shared_tokens,
    wanted_capture,
)
from kdn.engine.limits import EngineLimits, JobMemory
from kdn.engine.request import RunningRequest
from kdn.errors import PromptTooLong
from kdn.model import LoadedModel
from kdn.schedule import RequestQueue

__all__ = ["Admission", "WaitingRequests", "plain"]

_MAX_REPLANS = 3
_EFFORTS = ((True, True), (True, False), (False, False))
"""Whether to reuse and to retain: as asked for, and less where nothing else runs and that does not fit."""


class Admission:
    """Sets memory aside for requests before they run, for the worst case, so that none runs out."""

    def __init__(
        self,
        model: LoadedModel,
        planner: Planner,
        limits: EngineLimits,
        memory: JobMemory,
        budget: KvBudget,
        *,
        may_retain: bool = True,
    ) -> None:
        """With `may_retain` False no KV outlives its request, whatever requests ask for."""
        decoder = model.decoder
        self._may_retain = may_retain
        self._planner = planner
        self._limits = limits
        self._memory = memory
        self.budget = budget
        self.prefixes = PrefixPool(limits.idle_prefix_bytes)
        self._shape = kv_shape(model)
        self._dtype: torch.dtype = decoder.dtype
        self._device = str(decoder.device)

    def reserve(self, members: Sequence[RunningRequest]) -> bool:
        """Plan and set memory aside for all of them, or for none.

        Raises what the planner raises, and PromptTooLong for a group that the whole budget cannot hold.
        """
        alone = self.budget.free_bytes == self.budget.total_bytes
        num_reserved = 0
        for reuses, retains in _EFFORTS if alone else _EFFORTS[:1]:
            num_reserved = self._reserve_each(members, reuses=reuses, retains=retains)
            if num_reserved == len(members):
                self.budget.waits_no_more()
                return True
        if alone and num_reserved:  # without any it is another engine's turn
            raise PromptTooLong(
                f"{len(members)} requests are to run together and need more KV than the budget of "
                f"{self.budget.total_bytes / 2**20:.1f} MiB: group fewer, shorten them, or raise "
                "engine.kv_budget_bytes"
            )
        self.budget.waits()
        return False

    def _reserve_each(
        self, members: Sequence[RunningRequest], *, reuses: bool, retains: bool
    ) -> int:
        """For how many, from the first, there is memory; with fewer than all of them none holds any."""
        num_reserved = 0
        try:
            for running in members:
                if not self._reserve_one(running, reuses=reuses, retains=retains):
                    break
                num_reserved += 1
        finally:
            if num_reserved < len(members):
                for other in members[:num_reserved]:
                    self.release(other)
        return num_reserved

    def release(self, running: RunningRequest) -> None:
        """Give back everything a request holds. Harmless when it holds nothing."""
        kv, planned = running.kv, running.planned
        running.kv = None
        running.capture = None
        running.num_computed = 0
        self._let_go(running.id, kv.prefix if kv is not None else None)
        if planned is not None:
            _close(planned.plan)

    def settle(self, running: RunningRequest) -> None:
        """The prompt is computed: stored blocks it was loaded from need not be pinned any longer."""
        if running.planned is not None:
            _close(running.planned.plan)

    def check(self) -> None:
        """Audit the accounts. Raises AssertionError."""
        self.prefixes.check()
        self.budget.check()

    def _reserve_one(self, running: RunningRequest, *, reuses: bool, retains: bool) -> bool:
        request = running.request
        if self._shape.token_bytes * running.max_new_tokens > self.budget.free_bytes:
            return False
        may_reuse = reuses and request.reuse and running.num_replans <= _MAX_REPLANS
        planned = self._planner.plan(request if may_reuse else replace(request, reuse=False))
        taken = False
        try:
            if not may_reuse and not self._own_plan(running, planned.plan).one_layer:
                check_room(
                    request.prompt.num_tokens,
                    running.max_new_tokens,
                    self._shape.token_bytes,
                    self.budget.total_bytes,
                )
            may_retain = retains and self._may_retain
            wanted = wanted_capture(request, planned.plan) if may_retain else None
            taken = self._take(running, planned, wanted)
        finally:
            if not taken:
                _close(planned.plan)
        return taken

    def _take(
        self, running: RunningRequest, planned: Planned, capture: tuple[int, int] | None
    ) -> bool:
        request, num_prefix = running.request, planned.plan.num_prefix
        own_tokens = request.prompt.num_tokens - num_prefix
        plan = self._own_plan(running, planned.plan)
        prefix = self._prefix(plan, single_use=request.single_use)
        if plan.one_layer:
            size_bytes = self._memory.needed(own_tokens)
            capture = self._leading_part(capture, size_bytes, prefix)
        else:
            size_bytes = extents(own_tokens + running.max_new_tokens) * self._shape.token_bytes
        if capture is not None:
            size_bytes += extents(capture[1] - capture[0]) * self._shape.token_bytes
        if not self._set_aside(request.id, size_bytes, prefix):
            return False
        columns = own_tokens if plan.one_layer else own_tokens + 1
        noted: Capture | None = None
        try:
            own = SuffixKV(
                self._shape, self._dtype, self._device, columns, one_layer=plan.one_layer
            )
            if capture is not None:
                start, stop = capture
                noted = Capture(self._shape, self._dtype, start, stop - start)
        except BaseException:
            self._let_go(request.id, prefix)
            raise
        running.kv = SequenceKV(own, prefix, num_prefix)
        running.capture = noted
        running.planned = replace(planned, plan=plan)
        running.num_computed = num_prefix
        return True

    def _own_plan(self, running: RunningRequest, plan: Plan) -> Plan:
        """The plan as the request runs it: for one token, and in order, in the memory of one layer."""
        plan = running.completed(plan)
        if not running.is_one_token or not plan.computes_in_order:
            return plan
        return replace(plan, one_layer=True, row_chunk=self._limits.row_chunk)

    def _leading_part(
        self, capture: tuple[int, int] | None, size_bytes: int, prefix: PrefixKV | None
    ) -> tuple[int, int] | None:
        """As much of what is to be retained, from the front, as there is memory for; the rest is dropped."""
        if capture is None:
            return None
        if prefix is not None and prefix.users == 0:
            size_bytes += prefix.size_bytes
        free_tokens = (self.budget.free_bytes - size_bytes) // self._shape.token_bytes
        start, stop = capture
        if extents(stop - start) <= free_tokens:
            return capture
        stop = start + free_tokens // EXTENT * EXTENT
        return (start, stop) if stop > start else None

    def _prefix(self, plan: Plan, *, single_use: bool) -> PrefixKV | None:
        """The prefix that the plan reads, shared with those who read the same.

        One that holds a layer at a time has a name of its own: a sequence that decodes needs all layers.
        """
        if plan.prefix is None:
            return None
        name = plan.prefix.name
        known = self.prefixes.find(name)
        one_layer = known is None and plan.one_layer and single_use
        if one_layer:
            name = f"{name}, one layer"
            known = self.prefixes.find(name)
        return known or PrefixKV(
            name, plan.num_prefix, self._shape, self._dtype, self._device, one_layer=one_layer
        )

    def _set_aside(self, owner: str, size_bytes: int, prefix: PrefixKV | None) -> bool:
        if not self.budget.reserve(owner, size_bytes):
            return False
        if prefix is None:
            return True
        new = prefix.users == 0
        if new and not self.budget.reserve(_prefix_owner(prefix), prefix.size_bytes):
            self.budget.release(owner)
            return False
        self.prefixes.hold(prefix)
        return True

    def _let_go(self, owner: str, prefix: PrefixKV | None) -> None:
        self.budget.release(owner)
        if prefix is not None:
            self.prefixes.release(prefix)
            if prefix.users == 0:
                self.budget.release(_prefix_owner(prefix))


class WaitingRequests:
    """Owns the requests that wait, and asks for a look at them only when it could change something."""

    def __init__(
        self, queue: RequestQueue, planner: Planner, pack_tokens: int | None, budget: KvBudget
    ) -> None:
        self._queue = queue
        self._budget = budget
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
        try:
            self._queue.add(self._job(running))
        except Exception:
            self._withdraw(running)
            raise
        self._requests[running.id] = running
        self._nothing_fits = False

    def drop_cancelled(self) -> list[RunningRequest]:
        """Let those go that their callers withdrew."""
        gone = [running for running in self._requests.values() if running.stream.is_cancelled]
        for running in gone:
            del self._requests[running.id]
            self._withdraw(running)
        if gone and not self._requests:
            self._budget.waits_no_more()
        return gone

    def _withdraw(self, running: RunningRequest) -> None:
        request = running.request
        self._queue.withdraw(request.id, request.group, request.group_size)
        self._nothing_fits = False

    def something_changed(self) -> None:
        """A request ended or gave memory back: another may fit now."""
        self._nothing_fits = False

    def something_was_retained(self) -> None:
        """More may be stored of those that wait than they were filed with."""
        self._has_retained = True

    def admit(
        self,
        now_ns: int,
        enter: Callable[[Sequence[RunningRequest]], bool],
        prefilling: Sequence[RunningRequest],
    ) -> None:
        """Offer those that are next to `enter`, group by group, until it says no.

        `prefilling` are those without a first token, also while more are let in.  With any of them
        and packing, none is offered: what the pass leaves in the store may change which is next.
        Without packing one waits, and holds up no other, while most of what it misses is computed.
        """
        packs = self._pack_tokens is not None
        if not self._requests or (packs and prefilling):
            return
        if self._nothing_fits and not self._budget.has_changed():  # asked only where it is heeded
            return
        self._look_up_again()

        refused = False

        def fits(jobs: Sequence[Job]) -> bool:
            nonlocal refused
            members = [self._requests[job.id] for job in jobs]
            refused = not enter(members)
            if refused:
                return False
            for running in members:
                del self._requests[running.id]
            return True

        def waits(job: Job) -> bool:
            running = self._requests[job.id]
            is_behind = bool(prefilling) and not packs
            return is_behind and waits_for_another(running, job.num_cached, prefilling)

        while self._queue.admit(now_ns, fits, self._pack_tokens, waits):
            if refused or prefilling:  # else all of the pack failed, and nothing wakes the others
                break
        self._nothing_fits = bool(self._requests)
        if not refused:  # what is left waits for others of its group, or for what another computes
            self._budget.waits_no_more()

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
            running.family = family_name(request, running.adapter_from)
        return Job(
            id=request.id,
            arrival_ns=int(running.arrived_s * 1e9),
            num_tokens=request.prompt.num_tokens,
            num_cached=num_cached,
            max_new_tokens=running.max_new_tokens,
            priority=request.priority,
            background=request.background,
            group=request.group,
            group_size=request.group_size,
            num_cached_at_arrival=num_cached,
            family=running.family,
            num_shared=shared_tokens(request),
        )

    def _look_up_again(self) -> None:
        """How much of each waiting prompt is stored now, if that may differ from the last look; for packs.

        Requests with the same shared part are looked up once.
        """
        if self._pack_tokens is None or not self._has_retained:
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


def plain(request: Request) -> Planned:
    """Compute everything: what is done without techniques."""
    return Planned(Plan(request.prompt.token_ids))


def _prefix_owner(prefix: PrefixKV) -> str:
    return f"prefix {prefix.name} {id(prefix)}"


def _close(plan: Plan) -> None:
    if plan.prefix is not None:
        plan.prefix.close()
    for run in plan.stored:
        run.source.close()
    for enter in plan.enter:
        if enter.source is not None:
            enter.source.close()
