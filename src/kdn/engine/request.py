"""A request inside the engine: everything that changes while it runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from kdn.core import Finish, FinishReason, Planned, Request, Token, TokenProb, Usage
from kdn.engine.capture import Capture
from kdn.engine.kv import SequenceKV
from kdn.engine.sampling import DrawnToken, Sampler
from kdn.engine.stream import RunningStream
from kdn.engine.text import StopStrings
from kdn.model import Incremental, LoraAdapter, Tokenizer

__all__ = ["RunningRequest"]


@dataclass
class RunningRequest:
    """Owned by the step loop's thread. Phases: waiting, prefilling (`planned`), decoding, gone."""

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
    family: str = ""
    """Equal for requests that begin with the same shared tokens."""
    generated: list[int] = field(default_factory=list)
    stops: StopStrings = field(init=False)

    def __post_init__(self) -> None:
        self.stops = StopStrings(self.request.sampling.stop)

    @property
    def is_prefilled(self) -> bool:
        return self.num_computed >= self.request.prompt.num_tokens

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
        self, reason: FinishReason, now_s: float, tail: str = "", stop: str | None = None
    ) -> Finish:
        """The closing event, with the account of where the prompt's tokens came from."""
        return Finish(reason, self._usage(now_s), tail, stop)

    def _usage(self, now_s: float) -> Usage:
        planned = self.planned
        reused = planned.exact + planned.blended + planned.shared + planned.lossy if planned else 0
        first = self.first_token_s if self.first_token_s is not None else now_s
        return Usage(
            prompt_tokens=self.request.prompt.num_tokens,
            completion_tokens=len(self.generated),
            exact=planned.exact if planned else 0,
            blended=planned.blended if planned else 0,
            shared=planned.shared if planned else 0,
            lossy=planned.lossy if planned else 0,
            recomputed=self.request.prompt.num_tokens - reused if planned else 0,
            queue_ms=1e3 * (self.started_s - self.arrived_s)
            if planned
            else 1e3 * (now_s - self.arrived_s),
            ttft_ms=1e3 * (first - self.arrived_s),
            total_ms=1e3 * (now_s - self.arrived_s),
            tiers=planned.tiers if planned else {},
            levels=dict(planned.levels) if planned else {},
        )
