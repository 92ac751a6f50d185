"""A request inside the engine: how it comes in, what is known of it, and the stream its caller reads."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from kdn.clock import Clock
from kdn.core import (
    Finish,
    FinishReason,
    Plan,
    Planned,
    Request,
    Sampling,
    StreamEvent,
    Token,
    TokenProb,
    Usage,
)
from kdn.engine.kv import Capture, SequenceKV, check_room, kv_shape
from kdn.engine.limits import EngineLimits, JobMemory, counted_memory
from kdn.engine.lookup import PromptLookup
from kdn.engine.prompt_scores import PromptScores
from kdn.engine.sampling import DrawnToken, Sampler, StopStrings, check_tokens
from kdn.engine.states import MOVES, RequestState
from kdn.errors import BadInput, PromptTooLong
from kdn.machine.text import counted
from kdn.model import GrammarMatcher, Incremental, LoadedModel, LoraAdapter, Tokenizer

__all__ = ["Intake", "RunningRequest", "RunningStream"]

_WORTH_TOKENS = 16
"""An answer that can only be shorter does not pay for an index of its prompt."""

_log = logging.getLogger(__name__)

Item = StreamEvent | Exception | None


def _ignore(_item: object) -> None:
    return None


class RunningStream:
    """Events come from the engine's thread; the caller iterates, or has them pushed."""

    def __init__(
        self, wake: Callable[[], None], interrupted: Callable[[BaseException], None] = _ignore
    ) -> None:
        """`interrupted` is told what a listener raised that is no Exception: Ctrl-C or sys.exit."""
        self._wake, self._interrupted = wake, interrupted
        self._lock = threading.Lock()
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._listener: Callable[[Item], None] | None = None
        self._held: list[Item] = []
        self._has_ended = False
        self._cancelled = threading.Event()

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Stop after the current step. The stream then ends with CANCELLED."""
        self._cancelled.set()
        self._wake()

    def hold(self, event: StreamEvent) -> None:
        """Deliver an event with the next `flush` or `push`: callers run when all tokens of a step are drawn,
        and not between two of them."""
        self._held.append(event)

    def flush(self) -> None:
        """Deliver what was held."""
        if self._held:
            self.push()

    def push(self, *items: Item) -> None:
        """Deliver what was held, then events, an error, or None for the end; after the end nothing.

        A listener that raises is a caller that is gone: it is not called again, and the request is cancelled.
        """
        held, self._held = [*self._held, *items], []
        with self._lock:
            for item in held:
                if not self._has_ended:
                    self._has_ended = item is None
                    self._deliver(item)

    def _deliver(self, item: Item) -> None:
        if self._listener is None:
            self._items.put(item)
            return
        try:
            self._listener(item)
        except BaseException as error:  # noqa: BLE001  callers' code may fail in any way
            _log.exception("a listener failed; its request is cancelled")
            self._listener = _ignore
            self.cancel()
            if not isinstance(error, Exception):
                self._interrupted(error)

    def on_event(self, listener: Callable[[Item], None]) -> None:
        """From now on push to `listener`, beginning with what has come already."""
        with self._lock:
            while not self._items.empty():
                listener(self._items.get())
            self._listener = listener

    def __iter__(self) -> Iterator[StreamEvent]:
        while (item := self._items.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
        self._items.put(None)  # one that reads on must not wait


@dataclass
class RunningRequest:
    """Owned by the step loop: only its thread changes it, and only `move` changes its state."""

    request: Request
    stream: RunningStream
    sampler: Sampler
    detokenizer: Incremental
    tokenizer: Tokenizer
    stop_ids: frozenset[int]
    max_new_tokens: int
    arrived_s: float
    adapter: LoraAdapter | None = None
    """None also for an aLoRA that nothing in the prompt invokes."""
    adapter_from: int = 0
    """The first position that the adapter acts on."""
    started_s: float = 0.0
    first_token_s: float | None = None
    planned: Planned | None = None
    kv: SequenceKV | None = None
    capture: Capture | None = None
    num_computed: int = 0
    """Prompt positions that are done, reused ones included."""
    num_replans: int = 0
    max_guess: int = 0
    """Tokens that may be guessed at a time."""
    waits_for: str = ""
    """The request that computed, while this one waited, what both begin with."""
    runs_alone: bool = False
    """A pass with others in it failed: the next holds this request only, to find out whose fault it is."""
    scores: PromptScores | None = None
    """Where the prompt's tokens are reported too."""
    family: str = ""
    """Equal for requests that begin with the same shared tokens."""
    generated: list[int] = field(default_factory=list)
    lookup: PromptLookup | None = None
    """Guesses what comes next; made when decoding begins, where the engine wants guesses."""
    guessed: tuple[int, ...] = ()
    """What is guessed to follow the last token, in the step under way."""
    stops: StopStrings = field(init=False)
    _state: RequestState = field(default=RequestState.WAITING, init=False)

    def __post_init__(self) -> None:
        self.stops = StopStrings(self.request.sampling.stop)

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def state(self) -> RequestState:
        return self._state

    @property
    def has_ended(self) -> bool:
        return not MOVES[self._state]

    @property
    def is_prefilled(self) -> bool:
        return self.num_computed >= self.request.prompt.num_tokens

    def completed(self, plan: Plan) -> Plan:
        """The plan with what only the request says: where its adapter begins, the tokens allowed, and
        whether the prompt is scored."""
        allowed = self.request.sampling.allowed or None
        logits = plan.logits if self.scores is None else tuple(range(plan.num_tokens))
        if (plan.adapter_from, plan.allowed, plan.logits) == (self.adapter_from, allowed, logits):
            return plan
        return replace(plan, adapter_from=self.adapter_from, allowed=allowed, logits=logits)

    def leave_group(self) -> None:
        """Wait for room alone from now on: the others of its group were let in, and may have ended."""
        self.request = self.request.alone()

    def move(self, to: RequestState) -> None:
        """Go over to another state. Raises AssertionError for a move that the table does not have."""
        assert to in MOVES[self._state], f"request {self.id} cannot go from {self._state} to {to}"
        self._state = to

    def end(self, state: RequestState, item: Finish | Exception) -> None:
        """Close the stream with its last event or an error, and move to a last state."""
        self.stream.push(item, None)
        self.move(state)

    def accept(self, drawn: DrawnToken, now_s: float) -> Finish | None:
        """Take a drawn token, and say whether the request is finished. `stream.flush` tells the caller."""
        if self.first_token_s is None:
            self.first_token_s = now_s
        if drawn.token_id in self.stop_ids:
            return self.finish(FinishReason.STOP, now_s, self._rest() + self._stop_text(drawn))
        self.generated.append(drawn.token_id)
        if self.lookup is not None:
            self.lookup.append(drawn.token_id)
        shown = self.stops.push(self.detokenizer.push(drawn.token_id))
        ending = shown.stop if shown.stop and self.request.sampling.include_stop else ""
        self.stream.hold(
            Token(
                drawn.token_id,
                shown.text + ending,
                drawn.logprob,
                tuple(map(self._named, drawn.alternatives)),
            )
        )
        if shown.stop is not None:
            return self.finish(FinishReason.STOP, now_s, stop=shown.stop)
        if drawn.is_last:
            return self.finish(FinishReason.STOP, now_s, self._rest())
        if len(self.generated) >= self.max_new_tokens:
            return self.finish(FinishReason.LENGTH, now_s, self._rest())
        return None

    def _stop_text(self, drawn: DrawnToken) -> str:
        """What a stop token that was asked for adds to the text: nothing, unless that was asked for too."""
        sampling = self.request.sampling
        wanted = sampling.include_stop and drawn.token_id in sampling.stop_token_ids
        return self.tokenizer.token_text(drawn.token_id) if wanted else ""

    @property
    def is_one_token(self) -> bool:
        """Is nothing wanted but one token after the prompt?"""
        return self.max_new_tokens == 1 and self.scores is None

    def guess(self, max_tokens: int) -> None:
        """Guess what follows, at most `max_tokens` and never past the longest answer allowed."""
        left = self.max_new_tokens - len(self.generated) - 1
        num_tokens = min(max_tokens, left)
        if self.lookup is None and self.max_guess and left >= _WORTH_TOKENS:
            tokens = (*self.request.prompt.token_ids, *self.generated)
            self.lookup = PromptLookup(tokens, self.max_guess)
        self.guessed = () if self.lookup is None else self.lookup.guess(num_tokens)

    def keep_guessed(self) -> None:
        """The next guessed token was drawn: its column counts."""
        assert self.kv is not None, "a decoding request has KV"
        self.kv.suffix.num_columns += 1

    def learn(self, num_right: int) -> None:
        """The step is over, and `num_right` guessed tokens were drawn."""
        if self.lookup is not None and self.guessed:
            self.lookup.learn(len(self.guessed), num_right)

    def _named(self, pair: tuple[int, float]) -> TokenProb:
        token_id, logprob = pair
        return TokenProb(token_id, self.tokenizer.token_text(token_id), logprob)

    def _rest(self) -> str:
        """Text that was held back and is final now."""
        shown = self.stops.push(self.detokenizer.flush())
        return shown.text + self.stops.flush()

    def finish(
        self, reason: FinishReason, now_s: float, rest: str = "", stop: str | None = None
    ) -> Finish:
        """The closing event, with the account of where the prompt's tokens came from."""
        finish = Finish(reason, self._usage(now_s), rest, stop)
        if self.scores is None or reason is FinishReason.CANCELLED:
            return finish
        return replace(finish, spell_prompt=partial(self.scores.tokens, self.tokenizer))

    def _usage(self, now_s: float) -> Usage:
        planned, num_tokens = self.planned, self.request.prompt.num_tokens
        waited_s = now_s - self.arrived_s
        if planned is None:
            waited_ms = 1e3 * waited_s
            return Usage(num_tokens, 0, queue_ms=waited_ms, ttft_ms=waited_ms, total_ms=waited_ms)
        first = self.first_token_s if self.first_token_s is not None else now_s
        reused = planned.exact + planned.blended + planned.shared + planned.lossy
        return Usage(
            prompt_tokens=num_tokens,
            completion_tokens=len(self.generated),
            exact=planned.exact,
            blended=planned.blended,
            shared=planned.shared,
            lossy=planned.lossy,
            recomputed=num_tokens - reused,
            stored=planned.stored,
            declined=planned.declined,
            queue_ms=1e3 * (self.started_s - self.arrived_s),
            ttft_ms=1e3 * (first - self.arrived_s),
            load_ms=1e3 * planned.load_s(),
            total_ms=1e3 * waited_s,
            tiers=planned.tiers,
            levels=dict(planned.levels),
            moved=planned.moved,
        )


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

    def take(self, request: Request, stream: RunningStream) -> RunningRequest:
        """The request with all that it needs to run. Raises PromptTooLong, UnknownModel or BadInput.

        A constraint that was not compiled before is compiled now, while the caller waits.
        """
        sampling = request.sampling
        max_new_tokens = self._check_length(request)
        vocab_size = self._config.vocab_size
        check_tokens(request.prompt.token_ids, sampling, vocab_size)
        adapter = None
        if request.adapter is not None:
            key, adapter = self._model.adapters.bind(request.adapter)
            request = replace(request, adapter=key)
        begins = 0 if adapter is None else adapter.begins(request.prompt.token_ids)
        stop_ids = set(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            stop_ids |= {token for token in self._model.tokenizer.eos_ids if token < vocab_size}
        scores = None
        if sampling.prompt_logprobs is not None:
            scores = PromptScores(request.prompt.token_ids, sampling.prompt_logprobs)
            request = replace(request, reuse=False, techniques=())
        return RunningRequest(
            request=request,
            stream=stream,
            sampler=Sampler(
                sampling,
                next(self._seeds),
                self._matcher(sampling),
                prompt_ids=request.prompt.token_ids,
                end_ids=stop_ids,
            ),
            detokenizer=self._model.tokenizer.detokenizer(special=sampling.show_special),
            scores=scores,
            tokenizer=self._model.tokenizer,
            stop_ids=frozenset(stop_ids),
            max_new_tokens=max_new_tokens,
            arrived_s=self._clock.now(),
            adapter=None if begins is None else adapter,
            adapter_from=begins or 0,
            max_guess=self._limits.speculative_tokens,
        )

    def _matcher(self, sampling: Sampling) -> GrammarMatcher | None:
        if sampling.constraint is None:
            return None
        return self._model.grammars.compile(sampling.constraint).matcher()

    def _check_length(self, request: Request) -> int:
        """The most tokens that the request may generate."""
        num_tokens, context = request.prompt.num_tokens, self._config.max_position
        if num_tokens == 0:
            raise BadInput(f"request {request.id}: the prompt is empty; give it at least one token")
        if num_tokens >= context:
            raise PromptTooLong(
                f"the prompt holds {counted(num_tokens, 'token')} and the model's context {context}; "
                "shorten the prompt or use fewer documents"
            )
        max_new_tokens = min(request.sampling.max_tokens, context - num_tokens)
        scored = request.sampling.prompt_logprobs is not None
        self._check_memory(num_tokens, max_new_tokens, in_layers=max_new_tokens == 1 and not scored)
        return max_new_tokens

    def _check_memory(self, num_tokens: int, max_new_tokens: int, *, in_layers: bool) -> None:
        """Raises PromptTooLong when the whole budget could not hold the request."""
        total = self._limits.kv_bytes
        if in_layers and self.memory.needed(num_tokens) > total:
            raise PromptTooLong(
                f"the prompt holds {counted(num_tokens, 'token')}; for one answer token that takes "
                f"{self.memory.needed(num_tokens) / 2**20:.1f} MiB and the budget is "
                f"{total / 2**20:.1f} MiB, which fits {counted(self.memory.largest(total), 'token')}: "
                "shorten it, or raise engine.kv_budget_bytes"
            )
        if not in_layers:
            check_room(num_tokens, max_new_tokens, self._shape.token_bytes, total)
