"""Which requests may come in, and what each holds while it runs: its plan, its memory, its buffers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from kdn.clock import Clock
from kdn.core import KvShape, Plan, Planned, Planner, Request, Sampling
from kdn.engine.kv import EXTENT, KvBudget, PrefixKV, PrefixPool, SequenceKV, SuffixKV, extents
from kdn.engine.limits import EngineLimits, JobMemory, counted_memory
from kdn.engine.passes import computes_in_order
from kdn.engine.request import RunningRequest, RunningStream
from kdn.engine.retention import Capture, wanted_capture
from kdn.engine.sampling import Sampler
from kdn.errors import BadInput, PromptTooLong, UnknownModel
from kdn.model import LoadedModel, LoraAdapter

__all__ = ["Admission", "Intake", "plain"]

_MAX_REPLANS = 3


class Intake:
    """Turns requests into running requests, and refuses those that can never run."""

    def __init__(self, model: LoadedModel, limits: EngineLimits, clock: Clock, seed: int) -> None:
        self._model = model
        self._config = model.decoder.config
        self._limits = limits
        self._clock = clock
        self._seeds = itertools.count(seed)
        self._shape = kv_shape(model)
        self.memory: JobMemory = limits.memory or counted_memory(
            self._config, self._shape.value_bytes, limits.row_chunk
        )
        """What a prompt that is asked for one token needs."""

    def take(self, request: Request, wake: Callable[[], None]) -> RunningRequest:
        """The request with all that it needs to run. Raises PromptTooLong, UnknownModel or BadInput."""
        sampling = request.sampling
        max_new_tokens = self._check_length(request)
        _check_tokens(sampling, self._config.vocab_size)
        stop_ids = set(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            stop_ids |= set(self._model.tokenizer.eos_ids)
        return RunningRequest(
            request=request,
            stream=RunningStream(wake),
            sampler=Sampler(sampling, next(self._seeds)),
            detokenizer=self._model.tokenizer.detokenizer(),
            tokenizer=self._model.tokenizer,
            stop_ids=frozenset(stop_ids),
            max_new_tokens=max_new_tokens,
            arrived_s=self._clock.now(),
            adapter=self._adapter(request.adapter),
        )

    def _check_length(self, request: Request) -> int:
        """The most tokens that the request may generate."""
        num_tokens, context = request.prompt.num_tokens, self._config.max_position
        if num_tokens == 0:
            raise BadInput(f"request {request.id}: the prompt is empty; give it at least one token")
        if num_tokens >= context:
            raise PromptTooLong(
                f"the prompt holds {num_tokens} tokens and the model's context {context}; "
                "shorten the prompt or use fewer documents"
            )
        if request.sampling.max_tokens < 1:
            raise BadInput(f"max_tokens must be at least 1, not {request.sampling.max_tokens}")
        max_new_tokens = min(request.sampling.max_tokens, context - num_tokens)
        self._check_memory(num_tokens, max_new_tokens)
        return max_new_tokens

    def _check_memory(self, num_tokens: int, max_new_tokens: int) -> None:
        """Raises PromptTooLong when the whole budget could not hold the request."""
        total = self._limits.kv_bytes
        if max_new_tokens == 1 and self.memory.needed(num_tokens) > total:
            raise PromptTooLong(
                f"the prompt holds {num_tokens} tokens; for one answer token that takes "
                f"{self.memory.needed(num_tokens) / 2**20:.1f} MiB and the budget is "
                f"{total / 2**20:.1f} MiB, which fits {self.memory.largest(total)} tokens: "
                "shorten it, or raise engine.kv_budget_bytes"
            )
        needed = extents(num_tokens + max_new_tokens) * self._shape.token_bytes
        if max_new_tokens > 1 and needed > total:
            raise PromptTooLong(
                f"the prompt ({num_tokens} tokens) and its answer (up to {max_new_tokens}) "
                f"need {needed >> 20} MiB of KV; the budget is {total >> 20} MiB, "
                f"about {total // self._shape.token_bytes} tokens: shorten it, lower max_tokens, "
                "or raise engine.kv_budget_bytes"
            )

    def _adapter(self, name: str | None) -> LoraAdapter | None:
        if name is None:
            return None
        if name not in self._model.adapters:
            known = ", ".join(sorted(self._model.adapters)) or "none"
            raise UnknownModel(f"no adapter is called {name!r}; loaded adapters: {known}")
        return self._model.adapters[name]


class Admission:
    """Sets memory aside for requests before they run, for the worst case, so that none runs out."""

    def __init__(
        self, model: LoadedModel, planner: Planner, limits: EngineLimits, memory: JobMemory
    ) -> None:
        decoder = model.decoder
        self._planner = planner
        self._limits = limits
        self._memory = memory
        self.budget = KvBudget(limits.kv_bytes)
        self._prefixes = PrefixPool(limits.idle_prefix_bytes)
        self._shape = kv_shape(model)
        self._dtype: torch.dtype = decoder.dtype
        self._device = str(decoder.device)

    def reserve(self, members: Sequence[RunningRequest]) -> bool:
        """Plan and set memory aside for all of them, or for none. Raises what the planner raises."""
        done: list[RunningRequest] = []
        try:
            for running in members:
                if not self._reserve_one(running):
                    break
                done.append(running)
        finally:
            if len(done) < len(members):
                for other in done:
                    self.release(other)
        return len(done) == len(members)

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
        self._prefixes.check()
        self.budget.check()

    def _reserve_one(self, running: RunningRequest) -> bool:
        """As planned if there is memory; if it is alone and does not fit so, without retention or reuse."""
        request, free = running.request, self.budget.free_bytes
        if self._shape.token_bytes * running.max_new_tokens > free:
            return False
        alone = free == self.budget.total_bytes
        may_reuse = request.reuse and running.num_replans <= _MAX_REPLANS
        planned = self._planner.plan(request) if may_reuse else plain(request)
        taken = False
        try:
            taken = self._take(running, planned, wanted_capture(request, planned.plan))
        finally:
            if not taken:
                _close(planned.plan)
        return taken or (alone and self._take(running, plain(request), None))

    def _take(
        self, running: RunningRequest, planned: Planned, capture: tuple[int, int] | None
    ) -> bool:
        request, num_prefix = running.request, planned.plan.num_prefix
        own_tokens = request.prompt.num_tokens - num_prefix
        plan = self._one_token_plan(running, planned.plan)
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

    def _one_token_plan(self, running: RunningRequest, plan: Plan) -> Plan:
        """The plan as a prompt of one token runs it; other prompts' and other kinds of plans as they are."""
        if running.max_new_tokens > 1 or not computes_in_order(plan):
            return plan
        allowed = running.request.sampling.allowed or None
        return replace(plan, one_layer=True, row_chunk=self._limits.row_chunk, allowed=allowed)

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
        if plan.prefix is None:
            return None
        known = self._prefixes.find(plan.prefix.name)
        return known or PrefixKV(
            plan.prefix.name,
            plan.num_prefix,
            self._shape,
            self._dtype,
            self._device,
            one_layer=plan.one_layer and single_use,
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
        self._prefixes.hold(prefix)
        return True

    def _let_go(self, owner: str, prefix: PrefixKV | None) -> None:
        self.budget.release(owner)
        if prefix is not None:
            self._prefixes.release(prefix)
            if prefix.users == 0:
                self.budget.release(_prefix_owner(prefix))


def kv_shape(model: LoadedModel) -> KvShape:
    """The shape of the model's KV in the type that it computes in."""
    decoder = model.decoder
    return decoder.config.kv_shape(str(decoder.dtype).removeprefix("torch."))


def plain(request: Request) -> Planned:
    """Compute everything: what is done without a store."""
    return Planned(Plan(request.prompt.token_ids))


def _prefix_owner(prefix: PrefixKV) -> str:
    return f"prefix {prefix.name} {id(prefix)}"


def _close(plan: Plan) -> None:
    if plan.prefix is not None:
        plan.prefix.close()
    for run in plan.stored:
        run.source.close()


def _check_tokens(sampling: Sampling, vocab_size: int) -> None:
    """Raises BadInput for a token that the vocabulary lacks, and for a restriction that cannot be kept to."""
    allowed = sampling.allowed
    biased = [token for token in sampling.logit_bias if not 0 <= token < vocab_size]
    if biased:
        raise BadInput(f"logit_bias names token {biased[0]}, which the vocabulary does not have")
    if allowed and sampling.max_tokens != 1:
        raise BadInput(
            f"{len(allowed)} tokens are allowed in an answer of {sampling.max_tokens}: "
            "a restriction holds for answers of one token; set max_tokens to 1"
        )
    if len(set(allowed)) < len(allowed):
        raise BadInput("a token is allowed twice; name each once")
    outside = [t for t in (*allowed, *sampling.ranked) if not 0 <= t < vocab_size]
    if outside:
        raise BadInput(f"token {outside[0]} is asked for, which the vocabulary does not have")
    if allowed and not set(sampling.ranked) <= set(allowed):
        raise BadInput("a token that is not allowed has no probability to report")
