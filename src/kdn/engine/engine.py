"""The step loop: who came, who goes in, one layer of prefill or one token for everybody, what is left.

    step()  =  take in  ->  drop cancelled  ->  admit  ->  prefill a layer | decode a token

A prefill moves one layer at a time, so that running streams are served in between: none waits longer
than `max_stall_ms` and the layer under way.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from kdn.clock import Clock
from kdn.core import FinishReason, Job, Planner, Request, RetainedKV, Retention, Sampling
from kdn.engine.admission import Admission
from kdn.engine.executor import Pass
from kdn.engine.kv import KvBudget, PrefixPool
from kdn.engine.limits import EngineLimits, JobMemory
from kdn.engine.prefill import PrefillQueue
from kdn.engine.request import RunningRequest
from kdn.engine.retention import family_name, retained_answer, retained_prompt, shared_tokens
from kdn.engine.sampling import Sampler
from kdn.engine.slice import SequenceSlice
from kdn.engine.stream import RunningStream
from kdn.errors import BadInput, CorruptBlock, EngineFailed, PromptTooLong, UnknownModel
from kdn.machine.threads import give_up_workers
from kdn.model import LoadedModel, LoraAdapter
from kdn.model.attention import Attention
from kdn.schedule import Fcfs, RequestQueue
from kdn.trace import NoTrace, Trace

__all__ = ["Engine", "EngineStat"]


@dataclass(frozen=True)
class EngineStat:
    """A look at the engine: counts of requests, and bytes of KV."""

    num_waiting: int
    num_prefilling: int
    num_decoding: int
    kv_total_bytes: int
    kv_free_bytes: int


class Engine:
    """Runs requests on one model. Create, `submit` from any thread, `close`.

    With `threaded=False` nothing runs until `step` is called: for tests and simulations.
    """

    def __init__(
        self,
        model: LoadedModel,
        attention: Attention,
        planner: Planner,
        limits: EngineLimits,
        clock: Clock,
        room: RequestQueue | None = None,
        trace: Trace | None = None,
        *,
        seed: int = 0,
        threaded: bool = True,
    ) -> None:
        self._model = model
        self._attention = attention
        self._planner = planner
        self._limits = limits
        self._clock = clock
        self._trace = trace or NoTrace()
        self._room = room if room is not None else RequestQueue(Fcfs())  # an empty room is falsy
        self._seeds = itertools.count(seed)
        self._inbox: queue.SimpleQueue[RunningRequest] = queue.SimpleQueue()
        self._heads = PrefixPool(limits.idle_head_bytes)
        self._budget = KvBudget(limits.kv_bytes)
        self._admission = Admission(model, planner, limits, self._budget, self._heads)
        self._waiting: dict[str, RunningRequest] = {}
        self._prefills = PrefillQueue(model, attention, limits.max_batch_tokens)
        self._decoding: list[RunningRequest] = []
        self._nothing_fits = False
        """Admission was refused, and nothing has come or gone since."""
        self._has_kept = False
        """KV was handed out to be stored since the waiting were last looked up."""
        self._decoded_s = clock.now()
        self._wake = threading.Event()
        self._closing = False
        self.num_submitted = 0
        """Requests taken so far."""
        self._thread: threading.Thread | None = None
        if threaded:
            self._thread = threading.Thread(target=self._run, name="kdn-engine", daemon=True)
            self._thread.start()

    # --- the caller's side -------------------------------------------------------------------

    def submit(self, request: Request) -> RunningStream:
        """Queue a request. Raises PromptTooLong, UnknownModel or BadInput before anything is computed."""
        if self._closing:
            raise EngineFailed(f"request {request.id}: the engine is closed; open a new one")
        live = self._live(request)
        if self._thread is not None:
            give_up_workers()  # the engine's thread needs the processors
        self.num_submitted += 1
        self._inbox.put(live)
        self._wake.set()
        return live.stream

    @property
    def is_running(self) -> bool:
        """False once it was closed, or stopped by an error."""
        return not self._closing

    def free_kv(self) -> int:
        """Bytes of KV that could be reserved now."""
        return self._budget.free_bytes

    @property
    def memory(self) -> JobMemory:
        """What a prompt that is asked for one token needs."""
        return self._admission.memory

    def most_tokens(self) -> int:
        """The longest prompt of one token that can run here, nothing of it kept."""
        fits = self.memory.largest(self._budget.total_bytes)
        return min(fits, self._model.decoder.config.max_position - 1)

    def stat(self) -> EngineStat:
        """Counts as of now; may be a step old when asked from another thread."""
        return EngineStat(
            num_waiting=len(self._waiting) + self._inbox.qsize(),
            num_prefilling=len(self._prefills),
            num_decoding=len(self._decoding),
            kv_total_bytes=self._budget.total_bytes,
            kv_free_bytes=self._budget.free_bytes,
        )

    def close(self) -> None:
        """End the loop; requests still running end with an error. Calling it twice is harmless."""
        self._closing = True
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._fail_everyone(EngineFailed("the engine was closed while the request was running"))

    def check(self) -> None:
        """Audit the books. Raises AssertionError. Only meaningful between steps."""
        self._heads.check()
        self._budget.check()
        self._room.check()
        assert set(self._waiting) == {job.id for job in self._room.jobs()}, (
            "waiting room and list differ"
        )

    def _live(self, request: Request) -> RunningRequest:
        tokens, sampling = request.prompt.num_tokens, request.sampling
        room = self._model.decoder.config.max_position - tokens
        if tokens == 0:
            raise BadInput(f"request {request.id}: the prompt is empty; give it at least one token")
        if room < 1:
            limit = self._model.decoder.config.max_position
            raise PromptTooLong(
                f"the prompt holds {tokens} tokens and the model's context {limit}; "
                "shorten the prompt or use fewer documents"
            )
        if sampling.max_tokens < 1:
            raise BadInput(f"max_tokens must be at least 1, not {sampling.max_tokens}")
        outside = [
            t for t in sampling.logit_bias if not 0 <= t < self._model.decoder.config.vocab_size
        ]
        if outside:
            raise BadInput(
                f"logit_bias names token {outside[0]}, which the vocabulary does not have"
            )
        _check_allowed(sampling, self._model.decoder.config.vocab_size)
        max_new = min(sampling.max_tokens, room)
        self._admission.refuse_what_never_fits(request, max_new)
        stop_ids = set(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            stop_ids |= set(self._model.tokenizer.eos_ids)
        return RunningRequest(
            request=request,
            stream=RunningStream(self._wake.set),
            sampler=Sampler(sampling, next(self._seeds)),
            detokenizer=self._model.tokenizer.detokenizer(),
            tokenizer=self._model.tokenizer,
            stop_ids=frozenset(stop_ids),
            max_new_tokens=max_new,
            arrived_s=self._clock.now(),
            adapter=self._adapter(request.adapter),
        )

    def _adapter(self, name: str | None) -> LoraAdapter | None:
        if name is None:
            return None
        if name not in self._model.adapters:
            known = ", ".join(sorted(self._model.adapters)) or "none"
            raise UnknownModel(f"no adapter is called {name!r}; loaded adapters: {known}")
        return self._model.adapters[name]

    # --- the loop ----------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            self._wake.clear()
            try:
                busy = self.step()
            except Exception as error:  # noqa: BLE001  callers must hear of it, whatever it is
                self._closing = True
                self._trace.event("engine.stop", why=repr(error))
                failure = EngineFailed(f"the engine stopped: {error!r}; open a new one")
                failure.__cause__ = error
                self._fail_everyone(failure)
                return
            if not busy:
                self._wake.wait()

    def step(self) -> bool:
        """One unit of work. False when there was nothing to do."""
        with torch.inference_mode():
            self._take_in()
            self._drop_cancelled()
            self._admit()
            if self._prefills and not self._decode_is_due():
                self._prefill_layer()
                return True
            if self._decoding:
                self._decode()
                return True
        return bool(self._prefills)

    def _take_in(self) -> None:
        while not self._inbox.empty():
            self._wait(self._inbox.get())

    def _wait(self, live: RunningRequest) -> None:
        self._waiting[live.request.id] = live
        self._room.add(self._job(live))
        self._nothing_fits = False

    def _release(self, live: RunningRequest) -> None:
        self._admission.release(live)
        self._nothing_fits = False

    def _job(self, live: RunningRequest) -> Job:
        request = live.request
        num_cached = self._planner.cached_tokens(request) if request.reuse else 0
        if self._limits.pack_tokens is not None and request.retention is not Retention.NOTHING:
            live.family = family_name(live)
        return Job(
            id=request.id,
            arrival_ns=int(live.arrived_s * 1e9),
            num_tokens=request.prompt.num_tokens,
            num_cached=num_cached,
            max_new_tokens=live.max_new_tokens,
            priority=request.priority,
            group=request.group,
            group_size=request.group_size,
            num_cached_at_arrival=num_cached,
            family=live.family,
            num_shared=shared_tokens(live),
        )

    def _drop_cancelled(self) -> None:
        for live in [live for live in self._waiting.values() if live.stream.is_cancelled]:
            del self._waiting[live.request.id]
            self._room.remove(live.request.id)
            self._end(live, FinishReason.CANCELLED)
        for live in self._prefills.drop_cancelled():
            self._end(live, FinishReason.CANCELLED)
        for live in [live for live in self._decoding if live.stream.is_cancelled]:
            self._decoding.remove(live)
            self._end(live, FinishReason.CANCELLED)

    def _admit(self) -> None:
        if not self._waiting or self._nothing_fits:
            return
        pack_tokens = self._limits.pack_tokens
        if pack_tokens is not None:
            if self._prefills:  # one pass at a time: what it leaves behind may change who is next
                return
            self._count_anew()
        self._room.admit(int(self._clock.now() * 1e9), self._enter, pack_tokens)
        self._nothing_fits = bool(self._waiting)

    def _count_anew(self) -> None:
        """How much of each waiting prompt is stored now, if anything was stored since the last look.

        Requests with the same shared part are looked up once.
        """
        if not self._has_kept:
            return
        self._has_kept = False
        looked: dict[str, int] = {}
        for job in self._room.jobs():
            live = self._waiting[job.id]
            family = live.family or job.id
            if live.request.reuse and family not in looked:
                looked[family] = self._planner.cached_tokens(live.request)
            num_cached = min(looked.get(family, 0), job.num_tokens - 1)
            if num_cached != job.num_cached:
                self._room.add(replace(job, num_cached=num_cached))

    def _enter(self, jobs: Sequence[Job]) -> bool:
        """Put them in line if there is room for all. A request is planned when its turn is near.

        What runs before it may leave KV that it can use: of ten questions about one new document,
        the first computes it.
        """
        # What passes leaves nothing to those behind it, so its turn may be prepared a pass ahead.
        passes = 2 if all(self._waiting[job.id].request.single_use for job in jobs) else 1
        running = len(self._decoding) + len(self._prefills)
        if running and running + len(jobs) > passes * self._limits.max_sequences:
            return False
        if self._prefills.num_tokens_left >= passes * self._limits.max_batch_tokens:
            return False
        if not self._admission.reserve([self._waiting[job.id] for job in jobs]):
            return False
        for job in jobs:
            live = self._waiting.pop(job.id)
            live.started_s = self._clock.now()
            self._prefills.add(live)
            self._trace.event("engine.admit", request=job.id, tokens=job.num_tokens)
        return True

    def _decode_is_due(self) -> bool:
        waited_ms = 1e3 * (self._clock.now() - self._decoded_s)
        return bool(self._decoding) and waited_ms >= self._limits.max_stall_ms

    # --- prefill -----------------------------------------------------------------------------

    def _prefill_layer(self) -> None:
        try:
            finished = self._prefills.advance()
        except CorruptBlock as error:
            self._replan(self._prefills.abandon(), error)
        except Exception as error:  # noqa: BLE001  a failed pass ends its requests, not the engine
            for live in self._prefills.abandon():
                self._fail(live, error)
        else:
            self._nothing_fits &= not finished
            for live, logits in finished:
                self._first_token(live, logits)

    def _replan(self, lives: Sequence[RunningRequest], error: CorruptBlock) -> None:
        """A stored block could not be had: forget what was computed and plan again without it."""
        for live in lives:
            self._trace.event("engine.replan", request=live.request.id, why=str(error))
            self._release(live)
            live.num_replans += 1
            if self._admission.reserve([live]):
                self._prefills.add(live)
            else:
                self._wait(live)

    def _first_token(self, live: RunningRequest, logits: torch.Tensor) -> None:
        self._decoded_s = self._clock.now()
        self._admission.settle(live)
        self._take_token(live, logits, retained_prompt(live))

    # --- decode ------------------------------------------------------------------------------

    def _decode(self) -> None:
        lives = list(self._decoding)
        try:
            logits = self._next_logits(lives)
        except Exception as error:  # noqa: BLE001  a failed step ends its requests, not the engine
            for live in lives:
                self._decoding.remove(live)
                self._fail(live, error)
            return
        self._decoded_s = self._clock.now()
        for live, row in zip(lives, logits, strict=True):
            self._decoding.remove(live)
            self._take_token(live, row[-1])

    def _next_logits(self, lives: Sequence[RunningRequest]) -> list[torch.Tensor]:
        lanes = []
        for live in lives:
            assert live.kv is not None, "a decoding request has KV"
            if live.capture is not None:
                live.capture.grow(live.kv.num_columns + 1)
            lanes.append(
                SequenceSlice.decode(
                    live.kv, live.generated[-1], adapter=live.adapter, capture=live.capture
                )
            )
        step = Pass(self._model.decoder, self._attention, lanes)
        while not step.advance():
            pass
        return step.logits()

    def _take_token(
        self, live: RunningRequest, logits: torch.Tensor, prompt: RetainedKV | None = None
    ) -> None:
        """Draw, tell the caller, and either go on decoding or finish.

        A stream ends only when the store has been handed what its request leaves behind.
        """
        finish = live.accept(live.sampler.draw(logits), self._clock.now())
        self._keep(live.request, prompt)
        if finish is None:
            self._decoding.append(live)
            return
        kept = retained_answer(live) if live.request.retention is Retention.ALL else None
        self._release(live)
        self._keep(live.request, kept)
        live.stream.push(finish)
        live.stream.push(None)
        self._trace.event(
            "engine.finish",
            request=live.request.id,
            reason=finish.reason.value,
            ttft_ms=finish.usage.ttft_ms,
            prompt_tokens=finish.usage.prompt_tokens,
            completion_tokens=finish.usage.completion_tokens,
            exact=finish.usage.exact,
            blended=finish.usage.blended,
        )

    def _keep(self, request: Request, kept: RetainedKV | None) -> None:
        if kept is not None:
            self._planner.retain(request, kept)
            self._has_kept = True

    # --- endings -----------------------------------------------------------------------------

    def _end(self, live: RunningRequest, reason: FinishReason) -> None:
        self._release(live)
        live.stream.push(live.finish(reason, self._clock.now()))
        live.stream.push(None)
        self._trace.event("engine.finish", request=live.request.id, reason=reason.value)

    def _fail(self, live: RunningRequest, error: Exception) -> None:
        self._release(live)
        failure = EngineFailed(f"request {live.request.id} failed in the engine: {error!r}")
        failure.__cause__ = error
        live.stream.push(failure)
        live.stream.push(None)
        self._trace.event("engine.fail", request=live.request.id, why=repr(error))

    def _fail_everyone(self, error: EngineFailed) -> None:
        self._take_in()
        everyone = [*self._waiting.values(), *self._prefills.abandon(), *self._decoding]
        self._waiting.clear()
        self._decoding.clear()
        for live in everyone:
            self._room.remove(live.request.id)
            self._release(live)
            live.stream.push(error)
            live.stream.push(None)
            self._trace.event("engine.fail", request=live.request.id, why=repr(error))


def _check_allowed(sampling: Sampling, vocab_size: int) -> None:
    """Raises BadInput for a restriction that cannot be kept to."""
    allowed = sampling.allowed
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
