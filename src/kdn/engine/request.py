"""A request inside the engine: the table of its states, what it holds, and the stream its caller reads."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from kdn.core import Finish, FinishReason, Planned, Request, StreamEvent, Token, TokenProb, Usage
from kdn.engine.kv import SequenceKV
from kdn.engine.retention import Capture
from kdn.engine.sampling import DrawnToken, Sampler, StopStrings
from kdn.model import Incremental, LoraAdapter, Tokenizer

__all__ = ["MOVES", "RequestState", "RunningRequest", "RunningStream"]

_log = logging.getLogger(__name__)

Item = StreamEvent | Exception | None


class RequestState(StrEnum):
    """Where a request stands."""

    WAITING = "waiting"
    """In the request queue, without memory."""
    ADMITTED = "admitted"
    """Planned and with memory, in the prefill queue."""
    PREFILLING = "prefilling"
    """Part of it is or was in a pass, and it has no token yet."""
    DECODING = "decoding"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


_ENDS = frozenset({RequestState.CANCELLED, RequestState.FAILED})

MOVES: Mapping[RequestState, frozenset[RequestState]] = {
    RequestState.WAITING: _ENDS | {RequestState.ADMITTED},
    RequestState.ADMITTED: _ENDS | {RequestState.PREFILLING},
    # A pass that breaks off sends its requests back, to plan again.
    RequestState.PREFILLING: _ENDS
    | {
        RequestState.WAITING,
        RequestState.ADMITTED,
        RequestState.DECODING,
        RequestState.FINISHED,
    },
    RequestState.DECODING: _ENDS | {RequestState.FINISHED},
    RequestState.FINISHED: frozenset(),
    RequestState.CANCELLED: frozenset(),
    RequestState.FAILED: frozenset(),
}
"""Every move that a request may make, by the state it is in."""


class RunningStream:
    """Events come from the engine's thread; the caller iterates, or has them pushed."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._listener: Callable[[Item], None] | None = None
        self._cancelled = threading.Event()

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Stop after the current step. The stream then ends with CANCELLED."""
        self._cancelled.set()
        self._wake()

    def push(self, item: Item) -> None:
        """Deliver an event, an error, or None for the end.

        A listener that raises is a caller that is gone: it is not called again, and the request is cancelled.
        """
        with self._lock:
            if self._listener is None:
                self._items.put(item)
                return
            try:
                self._listener(item)
            except Exception:  # noqa: BLE001  callers' code may fail in any way
                _log.exception("a listener failed; its request is cancelled")
                self._listener = _ignore
                self.cancel()

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


def _ignore(_item: Item) -> None:
    return None


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
    started_s: float = 0.0
    first_token_s: float | None = None
    planned: Planned | None = None
    kv: SequenceKV | None = None
    capture: Capture | None = None
    num_computed: int = 0
    """Prompt positions that are done, reused ones included."""
    num_replans: int = 0
    runs_alone: bool = False
    """A pass with others in it failed: the next holds this request only, to find out whose fault it is."""
    family: str = ""
    """Equal for requests that begin with the same shared tokens."""
    generated: list[int] = field(default_factory=list)
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

    def move(self, to: RequestState) -> None:
        """Go over to another state. Raises AssertionError for a move that the table does not have."""
        assert to in MOVES[self._state], f"request {self.id} cannot go from {self._state} to {to}"
        self._state = to

    def end(self, state: RequestState, item: Finish | Exception) -> None:
        """Move to a last state and close the stream with its last event or an error."""
        self.move(state)
        self.stream.push(item)
        self.stream.push(None)

    def accept(self, drawn: DrawnToken, now_s: float) -> Finish | None:
        """Take a drawn token, tell the caller, and say whether the request is finished."""
        if self.first_token_s is None:
            self.first_token_s = now_s
        if drawn.token_id in self.stop_ids:
            return self.finish(FinishReason.STOP, now_s, self._rest())
        self.generated.append(drawn.token_id)
        shown = self.stops.push(self.detokenizer.push(drawn.token_id))
        self.stream.push(
            Token(
                drawn.token_id,
                shown.text,
                drawn.logprob,
                tuple(map(self._named, drawn.alternatives)),
            )
        )
        if shown.stop is not None:
            return self.finish(FinishReason.STOP, now_s, stop=shown.stop)
        if len(self.generated) >= self.max_new_tokens:
            return self.finish(FinishReason.LENGTH, now_s, self._rest())
        return None

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
        return Finish(reason, self._usage(now_s), rest, stop)

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
            queue_ms=1e3 * (self.started_s - self.arrived_s),
            ttft_ms=1e3 * (first - self.arrived_s),
            total_ms=1e3 * waited_s,
            tiers=planned.tiers,
            levels=dict(planned.levels),
        )
