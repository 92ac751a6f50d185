"""The step loop: take in, admit, one layer of prefill or one token for all that decode, hand over.

    step()  =  take in  ->  drop cancelled  ->  admit  ->  prefill a layer | decode a token

A pass of plain prompts takes along those that decode, and has only as many rows as about `max_stall_ms` is
enough for.  Any other prefill moves one layer at a time, so that running streams are served in between: none
waits longer than `max_stall_ms` and the layer under way.

A fault in one request ends that request with its reason.  A pass of several that fails is run again,
each request alone, to find out whose fault it is.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Sequence

from torch import Tensor

from kdn.clock import Clock
from kdn.core import Finish, FinishReason, Planner, Request, RetainedKV
from kdn.engine.admission import Admission, WaitingRequests
from kdn.engine.budget import KvBudget
from kdn.engine.executor import PassPace, StepTimes
from kdn.engine.kv import (
    drop_handed_over,
    has_answer_block,
    retained_answer,
    retained_parts,
)
from kdn.engine.limits import EngineLimits, JobMemory
from kdn.engine.passes import DecodeBatch, PrefillQueue
from kdn.engine.request import RunningRequest
from kdn.engine.states import RequestState
from kdn.errors import CorruptBlock, EngineFailed, KdnError
from kdn.model import LoadedModel
from kdn.model.attention import Attention
from kdn.schedule import RequestQueue
from kdn.trace import Trace

__all__ = ["StepLoop"]

_log = logging.getLogger(__name__)


class StepLoop:
    """All that changes while requests run. Only one thread may call it."""

    def __init__(
        self,
        model: LoadedModel,
        attention: Attention,
        planner: Planner,
        limits: EngineLimits,
        memory: JobMemory,
        clock: Clock,
        waiting: RequestQueue,
        inbox: queue.SimpleQueue[RunningRequest],
        trace: Trace,
        ended: Callable[[RunningRequest], None],
        budget: KvBudget,
        *,
        may_retain: bool = True,
    ) -> None:
        """`waiting` is an empty request queue; `ended` is told of every request that has ended; nothing
        is reserved of the `budget`.

        With `may_retain` False no KV is handed to the planner to be stored.
        """
        self._planner = planner
        self._limits = limits
        self._clock = clock
        self._trace = trace
        self._inbox = inbox
        self._ended = ended
        self._admission = Admission(model, planner, limits, memory, budget, may_retain=may_retain)
        self.prefixes = self._admission.prefixes
        self._waiting = WaitingRequests(waiting, planner, limits.pack_tokens, budget)
        self._prefills = PrefillQueue(model, attention, limits.max_batch_tokens)
        self._decodes = DecodeBatch(model, attention)
        self.times = StepTimes(clock)
        self._decoded_s = 0.0
        self._pace = PassPace(clock)
        self._suspicious = False
        """A fault may have left memory reserved for nobody."""

    def step(self) -> bool:
        """One unit of work. False when there was nothing to do.

        Raises what ends the loop, EngineFailed among it when faults have left the accounts in disorder.
        """
        self.times.spent("wait")
        self._decodes.num_in_step = 0
        self._take_in()
        self._drop_cancelled()
        now_ns = int(self._clock.now() * 1e9)
        self._waiting.admit(now_ns, self._enter, self._prefills.requests)
        self.times.spent("admit")
        waited_ms = 1e3 * (self._clock.now() - self._decoded_s)
        if self._prefills and not (self._decodes and waited_ms >= self._limits.max_stall_ms):
            self._prefill_layer()
            return True
        if self._decodes:
            outcomes = self._decodes.step()
            self.times.spent("decode")
            self._decoded(outcomes)
            return True
        if self._suspicious and not (self._waiting or self._prefills):
            self._suspicious = False
            if self._admission.budget.reserved_bytes:
                raise EngineFailed("a fault left KV memory reserved for no request")
        return bool(self._prefills)

    def counts(self) -> tuple[int, int, int]:
        """Requests that wait, that are in the prefill queue, and that decode."""
        waiting = len(self._waiting) + self._inbox.qsize()
        decoding = max(len(self._decodes), self._decodes.num_in_step, self._prefills.num_riding)
        return waiting, len(self._prefills), decoding

    def free_kv(self) -> int:
        """Bytes of KV that could be reserved now."""
        return self._admission.budget.free_bytes

    def check(self) -> None:
        """Audit the accounts. Raises AssertionError. Only meaningful between steps."""
        self._admission.check()
        self._waiting.check()

    def _take_in(self) -> None:
        while not self._inbox.empty():
            running = self._inbox.get()
            try:
                self._waiting.add(running)
            except Exception as error:  # noqa: BLE001  its own fault, whatever it is
                self.fail(running, error)

    def _drop_cancelled(self) -> None:
        gone = [
            *self._waiting.drop_cancelled(),
            *self._prefills.drop_cancelled(self._decodes),
            *self._decodes.drop_cancelled(),
        ]
        for running in gone:
            self._cancel(running)

    def _enter(self, members: Sequence[RunningRequest]) -> bool:
        """Put them into the prefill queue if there is memory for all; True when they wait no longer.

        A request is planned when its turn is near: what runs before it may leave KV that it can use.
        Of ten questions about one new document, the first computes it.
        """
        # A single use leaves nothing to those after it, so its turn may be prepared a pass ahead.
        passes = 2 if all(running.request.single_use for running in members) else 1
        num_running = len(self._decodes) + self._prefills.num_riding + len(self._prefills)
        if num_running and num_running + len(members) > passes * self._limits.max_sequences:
            return False
        if self._prefills.num_tokens_left >= passes * self._limits.max_batch_tokens:
            return False
        try:
            if not self._admission.reserve(members):
                return False
        except Exception as error:  # noqa: BLE001  a group that cannot be planned ends, nothing else
            for running in members:
                self.fail(running, error)
            return True
        for running in members:
            running.started_s = self._clock.now()
            running.move(RequestState.ADMITTED)
            self._prefills.add(running)
            num_tokens = running.request.prompt.num_tokens
            self._trace.event("engine.admit", request=running.id, tokens=num_tokens)
        return True

    # --- prefill -----------------------------------------------------------------------------

    def _prefill_layer(self) -> None:
        if not self._prefills.is_under_way:
            self._pace.begin()
        most_rows = self._pace.rows_within(self._limits.max_stall_ms)
        try:
            outcome = self._prefills.advance(self._decodes, most_rows)
        except CorruptBlock as error:
            for running in self._prefills.abandon(self._decodes):
                running.num_replans += 1
                self._plan_again(running, error)
        except Exception as error:  # noqa: BLE001  a failed pass ends its request, not the engine
            had_riders = self._prefills.num_riding > 0
            members = self._prefills.abandon(self._decodes)
            self._pass_failed(members, error, is_alone=len(members) == 1 and not had_riders)
        else:
            self.times.spent("prefill")
            if outcome is None:
                return
            self._pace.end(self._prefills.num_rows)
            if outcome.decoded:
                self._decoded(outcome.decoded)
            if outcome.finished:
                self._waiting.something_changed()
                self._decoded_s = self._clock.now()
            going_on = [one for one in outcome.finished if self._take_token(*one)]
            _tell_callers(outcome.finished)  # nobody waits for a first token while KV is copied
            for running, _ in going_on:
                self._hand_over(running)

    def _pass_failed(
        self, members: Sequence[RunningRequest], error: Exception, *, is_alone: bool
    ) -> None:
        """A request that was alone failed by its own fault; of several, riders too, each is tried alone."""
        if is_alone:
            self.fail(members[0], error)
            return
        for running in members:
            running.runs_alone = True
            self._plan_again(running, error)

    def _plan_again(self, running: RunningRequest, error: Exception) -> None:
        """Forget what was computed and plan again: without a stored block that could not be had."""
        self._trace.event("engine.replan", request=running.id, why=str(error))
        try:
            self._release(running)
            if self._admission.reserve([running]):
                running.move(RequestState.ADMITTED)
                self._prefills.add(running)
            else:
                running.leave_group()
                running.move(RequestState.WAITING)
                self._waiting.add(running)
        except Exception as failure:  # noqa: BLE001  its own fault, whatever it is
            self.fail(running, failure)

    def _hand_over(self, running: RunningRequest) -> None:
        """What is computed, to the store; then its request decodes on."""
        try:
            self._retain(running.request, *retained_parts(running))
            drop_handed_over(running)
        except Exception as error:  # noqa: BLE001  its own fault, whatever it is
            self.fail(running, error)
        else:
            self._decodes.add(running)

    # --- decode ------------------------------------------------------------------------------

    def _decoded(self, outcomes: Sequence[tuple[RunningRequest, Tensor | Exception]]) -> None:
        self._decoded_s = self._clock.now()
        filled = []
        for running, outcome in outcomes:
            if isinstance(outcome, Exception):
                self.fail(running, outcome)
            elif not self._take_tokens(running, outcome):
                continue
            elif has_answer_block(running):
                filled.append(running)
            else:
                self._decodes.add(running)
        _tell_callers(outcomes)  # nobody waits for a token while KV is copied
        for running in filled:
            self._hand_over(running)

    def _take_tokens(self, running: RunningRequest, logits: Tensor) -> bool:
        """Draw one token, and further ones as long as what was guessed is drawn. True if it goes on."""
        try:
            num_right = 0
            for row, guessed in zip(logits, (*running.guessed, None), strict=True):
                if not self._take_token(running, row):
                    return False
                if running.generated[-1] != guessed:
                    break
                running.keep_guessed()
                num_right += 1
            running.learn(num_right)
        except Exception as error:  # noqa: BLE001  its own fault, whatever it is
            self.fail(running, error)
            return False
        return True

    def _take_token(self, running: RunningRequest, logits: Tensor) -> bool:
        """Draw, tell the caller, and either go on decoding (True) or finish.

        A stream ends only when the store has been handed what its request leaves to it.
        """
        try:
            is_first = running.state is RequestState.PREFILLING
            if is_first:
                self._admission.settle(running)
            finish = running.accept(running.sampler.draw(logits), self._clock.now())
            self.times.spent("draw")
            if finish is None:
                if is_first:
                    running.move(RequestState.DECODING)
                return True
            if is_first:
                self._retain(running.request, *retained_parts(running))
            answer = retained_answer(running)
            self._release(running)
            if answer is not None:
                self._retain(running.request, answer)
        except Exception as error:  # noqa: BLE001  its own fault, whatever it is
            self.fail(running, error)
            return False
        self._end(running, RequestState.FINISHED, finish)
        self._trace.event(
            "engine.finish",
            request=running.id,
            reason=finish.reason.value,
            ttft_ms=finish.usage.ttft_ms,
            prompt_tokens=finish.usage.prompt_tokens,
            completion_tokens=finish.usage.completion_tokens,
            exact=finish.usage.exact,
            approximate=finish.usage.cached_tokens - finish.usage.exact,
            guessed=0 if running.lookup is None else running.lookup.num_guessed,
            guessed_right=0 if running.lookup is None else running.lookup.num_right,
        )
        return False

    def _retain(self, request: Request, *parts: RetainedKV) -> None:
        """Hand KV to the store. A store that fails costs the reuse, not the answer."""
        for kv in parts:
            try:
                self._planner.retain(request, kv)
            except Exception as error:  # noqa: BLE001  a store may fail in any way
                _log.exception("KV of request %s cannot be stored", request.id)
                self._trace.event("engine.retain_failed", request=request.id, why=repr(error))
            self._waiting.something_was_retained()
            self.times.spent("retain")

    # --- endings -----------------------------------------------------------------------------

    def _release(self, running: RunningRequest) -> None:
        self._admission.release(running)
        self._waiting.something_changed()

    def _end(self, running: RunningRequest, state: RequestState, item: Finish | Exception) -> None:
        running.end(state, item)
        self._ended(running)

    def _cancel(self, running: RunningRequest) -> None:
        try:
            self._release(running)
            finish = running.finish(FinishReason.CANCELLED, self._clock.now())
        except Exception as error:  # noqa: BLE001  its own fault, whatever it is
            self.fail(running, error)
            return
        self._end(running, RequestState.CANCELLED, finish)
        self._trace.event("engine.finish", request=running.id, reason=finish.reason.value)

    def fail(self, running: RunningRequest, error: Exception) -> None:
        """End a request with its reason; one that has ended stays as it is. Never raises."""
        self._suspicious = True
        try:
            self._release(running)
        except Exception:  # noqa: BLE001  the caller must hear of the end in any case
            _log.exception("what request %s held cannot all be given back", running.id)
        if running.has_ended:
            return
        failure = error
        if not isinstance(error, KdnError) or isinstance(error, CorruptBlock):
            failure = EngineFailed(f"request {running.id} failed in the engine: {error!r}")
            failure.__cause__ = error
            _log.error("request %s failed", running.id, exc_info=error)
        self._end(running, RequestState.FAILED, failure)
        self._trace.event("engine.fail", request=running.id, why=repr(error))


def _tell_callers(outcomes: Sequence[tuple[RunningRequest, object]]) -> None:
    """When all tokens are drawn, and not between two of them."""
    for running, _ in outcomes:
        running.stream.flush()
