"""Room for a request: its plan, its share of the KV budget, its buffers; and giving it all back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from kdn.core import Plan, Planned, Planner, Request
from kdn.engine.capture import Capture
from kdn.engine.kv import EXTENT, KvBudget, PrefixKV, PrefixPool, SequenceKV, SuffixKV, extents
from kdn.engine.limits import EngineLimits
from kdn.engine.onetoken import counted_memory, one_token_plan
from kdn.engine.request import RunningRequest
from kdn.engine.retention import wanted_capture
from kdn.errors import PromptTooLong
from kdn.model import LoadedModel

__all__ = ["Admission"]

_MAX_REPLANS = 3


class Admission:
    """Sets memory aside for requests before they run, for the worst case, so that none runs out."""

    def __init__(
        self,
        model: LoadedModel,
        planner: Planner,
        limits: EngineLimits,
        budget: KvBudget,
        heads: PrefixPool,
    ) -> None:
        decoder = model.decoder
        self._planner = planner
        self._limits = limits
        self._budget = budget
        self._heads = heads
        self._shape = decoder.config.kv_shape(str(decoder.dtype).removeprefix("torch."))
        self._dtype: torch.dtype = decoder.dtype
        self._device = str(decoder.device)
        self.memory = limits.memory or counted_memory(
            decoder.config, self._shape.value_bytes, limits.row_chunk
        )

    def refuse_what_never_fits(self, request: Request, max_new_tokens: int) -> None:
        """Raises PromptTooLong when the whole budget could not hold the request."""
        if max_new_tokens == 1:
            self._refuse_one_token(request.prompt.num_tokens)
            return
        needed = self._own_bytes(request.prompt.num_tokens, max_new_tokens)
        if needed > self._budget.total_bytes:
            fits = self._budget.total_bytes // self._shape.token_bytes
            raise PromptTooLong(
                f"the prompt ({request.prompt.num_tokens} tokens) and its answer (up to {max_new_tokens}) "
                f"need {needed >> 20} MiB of KV; the budget is {self._budget.total_bytes >> 20} MiB, "
                f"about {fits} tokens: shorten it, lower max_tokens, or raise engine.kv_budget_bytes"
            )

    def _refuse_one_token(self, num_tokens: int) -> None:
        needed, total = self.memory.needed(num_tokens), self._budget.total_bytes
        if needed > total:
            raise PromptTooLong(
                f"the prompt holds {num_tokens} tokens; for one answer token that takes "
                f"{needed / 2**20:.1f} MiB and the budget is {total / 2**20:.1f} MiB, which fits "
                f"{self.memory.largest(total)} tokens: shorten it, or raise engine.kv_budget_bytes"
            )

    def reserve(self, lives: Sequence[RunningRequest]) -> bool:
        """Plan and set memory aside for all of them, or for none."""
        done: list[RunningRequest] = []
        for live in lives:
            if not self._reserve_one(live):
                for other in done:
                    self.release(other)
                return False
            done.append(live)
        return True

    def release(self, live: RunningRequest) -> None:
        """Give back everything a request holds. Harmless when it holds nothing."""
        if live.kv is not None and live.kv.head is not None:
            head = live.kv.head
            self._heads.release(head)
            if head.users == 0:
                self._budget.release(_head_owner(head))
        if live.planned is not None:
            _close(live.planned.plan)
        self._budget.release(live.request.id)
        live.kv = None
        live.capture = None
        live.num_computed = 0

    def settle(self, live: RunningRequest) -> None:
        """The prompt is computed: stored blocks it was loaded from need not be pinned any longer."""
        if live.planned is not None:
            _close(live.planned.plan)

    def _reserve_one(self, live: RunningRequest) -> bool:
        """As planned if there is room; if it is alone and does not fit so, without keeping or reuse."""
        if self._shape.token_bytes * live.max_new_tokens > self._budget.free_bytes:
            return False
        alone = self._budget.free_bytes == self._budget.total_bytes
        planned = self._planner.plan(live.request) if self._may_reuse(live) else plain(live.request)
        capture = wanted_capture(live, planned.plan.num_prefix, planned.plan.keep)
        if self._take(live, planned, capture):
            return True
        _close(planned.plan)
        return alone and self._take(live, plain(live.request), None)

    def _take(
        self, live: RunningRequest, planned: Planned, capture: tuple[int, int] | None
    ) -> bool:
        request, num_prefix = live.request, planned.plan.num_prefix
        own_tokens = request.prompt.num_tokens - num_prefix
        plan = one_token_plan(live, planned.plan, self._limits.row_chunk)
        head = self._head(plan, single_use=request.single_use)
        if plan.one_layer:
            size_bytes = self.memory.needed(own_tokens)
            capture = self._leading_part(capture, size_bytes, head)
        else:
            size_bytes = self._own_bytes(own_tokens, live.max_new_tokens)
        if capture is not None:
            size_bytes += extents(capture[1] - capture[0]) * self._shape.token_bytes
        if not self._set_aside(request.id, size_bytes, head):
            return False
        live.planned = replace(planned, plan=plan)
        live.num_computed = num_prefix
        columns = own_tokens if plan.one_layer else own_tokens + 1
        tail = SuffixKV(self._shape, self._dtype, self._device, columns, one_layer=plan.one_layer)
        live.kv = SequenceKV(tail, head, num_prefix)
        if capture is not None:
            start, stop = capture
            live.capture = Capture(self._shape, self._dtype, start, stop - start)
        return True

    def _leading_part(
        self, capture: tuple[int, int] | None, size_bytes: int, head: PrefixKV | None
    ) -> tuple[int, int] | None:
        """As much of what is to be kept, from the front, as there is memory for; the rest is dropped."""
        if capture is None:
            return None
        if head is not None and head.users == 0:
            size_bytes += head.size_bytes
        room = (self._budget.free_bytes - size_bytes) // self._shape.token_bytes
        start, stop = capture
        if extents(stop - start) <= room:
            return capture
        stop = start + room // EXTENT * EXTENT
        return (start, stop) if stop > start else None

    @staticmethod
    def _may_reuse(live: RunningRequest) -> bool:
        return live.request.reuse and live.num_replans <= _MAX_REPLANS

    def _own_bytes(self, num_tokens: int, max_new_tokens: int) -> int:
        return extents(num_tokens + max_new_tokens) * self._shape.token_bytes

    def _head(self, plan: Plan, *, single_use: bool) -> PrefixKV | None:
        if plan.prefix is None:
            return None
        known = self._heads.find(plan.prefix.name)
        return known or PrefixKV(
            plan.prefix.name,
            plan.num_prefix,
            self._shape,
            self._dtype,
            self._device,
            one_layer=plan.one_layer and single_use,
        )

    def _set_aside(self, owner: str, size_bytes: int, head: PrefixKV | None) -> bool:
        if not self._budget.reserve(owner, size_bytes):
            return False
        if head is None:
            return True
        if head.users == 0 and not self._budget.reserve(_head_owner(head), head.size_bytes):
            self._budget.release(owner)
            return False
        self._heads.hold(head)
        return True


def plain(request: Request) -> Planned:
    """Compute everything: what is done without a store."""
    return Planned(Plan(request.prompt.token_ids))


def _head_owner(head: PrefixKV) -> str:
    return f"head {head.name} {id(head)}"


def _close(plan: Plan) -> None:
    if plan.prefix is not None:
        plan.prefix.close()
    for run in plan.stored:
        run.source.close()
