"""Requests, and what becomes of them: tokens, usage, streams."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from numbers import Integral, Real
from typing import Any, Protocol, TypeVar

from kdn.core.blocks import check_salt
from kdn.core.constraints import Constraint
from kdn.core.prompts import Prompt
from kdn.errors import BadInput

__all__ = [
    "Blend",
    "Finish",
    "FinishReason",
    "Generator",
    "Prefix",
    "Request",
    "Retention",
    "Sampling",
    "Stream",
    "StreamEvent",
    "Token",
    "TokenProb",
    "Usage",
]

Option = TypeVar("Option")


MIN_SEED, MAX_SEED = -(1 << 63), (1 << 64) - 1
"""Seeds are 64 bits, signed or not."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. The default is greedy."""

    max_tokens: int = 512
    temperature: float = 0.0
    """0 means greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 means no limit."""
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    """How many alternatives to report per token; 0 reports the chosen token only; None reports nothing."""
    allowed: tuple[int, ...] = ()
    """The only tokens that may be drawn, and all that probabilities are shared among; for
    answers of one token. Empty means all."""
    ranked: tuple[int, ...] = ()
    """Report exactly these tokens, in this order, where `logprobs` would report the likeliest."""
    raw_logits: bool = False
    """Report logits where log-probabilities would be reported."""
    constraint: Constraint | None = None
    """What the answer must be. Ends of text are drawn only where it is fulfilled."""
    frequency_penalty: float = 0.0
    """Is taken off a token's logit for every time that the answer has it."""
    presence_penalty: float = 0.0
    """Is taken off the logit of every token that the answer has."""
    repetition_penalty: float = 1.0
    """Divides the positive logits, and multiplies the others, of tokens of prompt and answer
    (CTRL, arXiv 1909.05858, section 4.1)."""
    min_tokens: int = 0
    """No end of text is drawn before so many tokens, unless a constraint allows nothing else."""
    include_stop: bool = False
    """The stop string that was met, or the text of one of `stop_token_ids`, ends the text."""
    show_special: bool = False
    """Special tokens are part of the text."""
    prompt_logprobs: int | None = None
    """Report the prompt's tokens too, each with so many alternatives; all of the prompt is computed."""

    def __post_init__(self) -> None:
        """A single `str` for `stop` is one stop string. Raises BadInput that names the field."""
        stop: object = self.stop
        if isinstance(stop, str):
            object.__setattr__(self, "stop", (stop,))
        _check_number("temperature", self.temperature, 0, math.inf)
        _check_number("top_p", self.top_p, 0, 1)
        _check_number("min_p", self.min_p, 0, 1)
        _check_whole("max_tokens", self.max_tokens, 1)
        _check_whole("top_k", self.top_k, 0)
        if self.seed is not None:
            _check_whole("seed", self.seed, MIN_SEED, MAX_SEED)
        if self.logprobs is not None:
            _check_whole("logprobs", self.logprobs, 0)
        for name in ("stop_token_ids", "allowed", "ranked"):
            for token_id in _items(name, getattr(self, name)):
                _check_whole(name, token_id, 0)
        if not all(isinstance(text, str) for text in _items("stop", self.stop)):
            raise BadInput(f"stop takes strings, not {_short(self.stop)}")
        _check_bias(self.logit_bias)
        self._check_penalties()
        self._check_constraint()

    def _check_penalties(self) -> None:
        for name in ("frequency_penalty", "presence_penalty"):
            _check_number(name, getattr(self, name), -1e6, 1e6)
        _check_number("repetition_penalty", self.repetition_penalty, 1e-6, 1e6)
        _check_whole("min_tokens", self.min_tokens, 0)
        if self.min_tokens > self.max_tokens:
            raise BadInput(
                f"min_tokens is {self.min_tokens} and max_tokens {self.max_tokens}: lower the first"
            )
        if self.prompt_logprobs is not None:
            _check_whole("prompt_logprobs", self.prompt_logprobs, 0)
        scored = self.prompt_logprobs is not None
        if self.allowed and (self.is_penalising or self.min_tokens or scored):
            raise BadInput(
                "`allowed` is for answers of one token, without penalties, min_tokens or prompt_logprobs"
            )

    @property
    def is_penalising(self) -> bool:
        """Do the tokens so far change what is drawn?"""
        return bool(self.frequency_penalty or self.presence_penalty or self.repetition_penalty != 1)

    def _check_constraint(self) -> None:
        if self.constraint is None:
            return
        if not isinstance(self.constraint, Constraint):
            raise BadInput(f"constraint takes a kdn.Constraint, not {_short(self.constraint)}")
        if self.ignore_eos:
            raise BadInput(
                "ignore_eos goes on past the end that a constraint asks for; leave one out"
            )
        if self.allowed:
            raise BadInput(
                "`allowed` and a constraint both say what may be drawn; give one of them"
            )


def _check_bias(bias: object) -> None:
    if not isinstance(bias, Mapping):
        raise BadInput(f"logit_bias takes a mapping of token ids to numbers, not {_short(bias)}")
    for token_id, value in bias.items():
        _check_whole("a token of logit_bias", token_id, 0)
        _check_number("a value of logit_bias", value, -math.inf, math.inf)


def _items(name: str, value: object) -> Sequence[object]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise BadInput(f"{name} takes a sequence, not {_short(value)}")
    return value


def _as_number(value: object, kind: type) -> Any:
    """The value if it is a number of the kind; else NaN, which is within no bounds."""
    return value if isinstance(value, kind) and not isinstance(value, bool) else math.nan


def _check_number(name: str, value: object, low: float, high: float) -> None:
    """Raises BadInput for what is no finite number from `low` to `high`."""
    number = _as_number(value, Real)
    if low <= number <= high and abs(number) <= sys.float_info.max:
        return
    bounds = f" from {low} to {high}" if math.isfinite(high) else f" of at least {low}"
    wanted = "a finite number" + (bounds if math.isfinite(low) else "")
    raise BadInput(f"{name} must be {wanted}, not {_short(value)}")


def _check_whole(name: str, value: object, low: int, high: int | None = None) -> None:
    """Raises BadInput for what is no whole number from `low` to `high`."""
    number = _as_number(value, Integral)
    if low <= number and (high is None or number <= high):
        return
    bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
    raise BadInput(f"{name} must be a whole number {bounds}, not {_short(value)}")


def _short(value: object) -> str:
    """A value as a message may show it; a number of thousands of digits is only called large."""
    if isinstance(value, Integral) and abs(int(value)) >= 1 << 128:
        return "a number of more than 128 bits"
    return repr(value)[:80]


class Retention(StrEnum):
    """Which KV of a request outlives it."""

    NOTHING = "nothing"
    SHARED = "shared"
    """Everything but the last segment: prelude, documents, instructions, history."""
    ALL = "all"
    """The question and the answer too, for a conversation that goes on."""


@dataclass(frozen=True)
class Prefix:
    """Option of prefix reuse: what a request accepts of stored KV that it begins with.

    Raises BadInput for limits that are no numbers, or below 0.
    """

    max_kl: float | None = None
    """How far (mean KL, nats) a codec may move answers by measurement; 0: not at all; None: as set."""
    load_within_s: float | None = None
    """By when stored KV is to be loaded; None: as set, or sooner than it would be computed."""

    def __post_init__(self) -> None:
        if self.max_kl is not None:
            _check_number("max_kl", self.max_kl, 0, math.inf)
        if self.load_within_s is not None:
            _check_number("load_within_s", self.load_within_s, 1e-6, math.inf)


@dataclass(frozen=True)
class Blend:
    """Option of blending: stored documents are reused anywhere in the prompt, and partly recomputed.

    `ratio` is the share of the reused tokens that is recomputed; None leaves it to kdn, which judges
    the answers over each named `collection` of documents apart.  Raises BadInput for a ratio outside
    of 0..1 or a collection that is no text.
    """

    ratio: float | None = None
    collection: str = ""

    def __post_init__(self) -> None:
        number = 0.0 if self.ratio is None else _as_number(self.ratio, Real)
        if not 0 <= number <= 1:
            raise BadInput(
                f"ratio is {_short(self.ratio)}; it is a share, 0 to 1, of the reused tokens"
            )
        if not isinstance(self.collection, str):
            raise BadInput(f"collection must be a text, not {_short(self.collection)}")


@dataclass(frozen=True)
class Request:
    """One thing to generate. `group` names requests that are admitted together or not at all.

    Raises BadInput for a salt that cannot be stored.
    """

    id: str
    prompt: Prompt
    sampling: Sampling = Sampling()
    salt: str = ""
    adapter: str | None = None
    group: str | None = None
    group_size: int = 1
    priority: int = 0
    """Lower is sooner, for policies that look at it."""
    reuse: bool = True
    """May stored KV be used for it?"""
    techniques: tuple[object, ...] = ()
    """Options of the techniques it asks for, one of a class at most, such as `Blend(0.15)`.  Without
    any the answer is that of a full prefill, but for lossy codecs that the settings allow, and for KV of
    a sibling model where the pair has a profile and `share.mode` is not `exact`."""
    retention: Retention = Retention.SHARED
    single_use: bool = False
    """No other request is about to begin with the same tokens: for an answer of one token, what is
    stored of the prompt comes a layer at a time, each into the memory of the one before."""
    background: bool = False
    """Nobody waits for it: under every policy it is let in after all that wait and are not."""

    def __post_init__(self) -> None:
        if not isinstance(self.salt, str):
            raise BadInput(f"the salt must be a text, not {_short(self.salt)}")
        check_salt(self.salt)

    def option(self, kind: type[Option]) -> Option | None:
        """The request's option of that class, if it has one."""
        return next((one for one in self.techniques if isinstance(one, kind)), None)

    def using(self, *options: object) -> Request:
        """The request with these options in place of its own of the same classes."""
        others = self.without(*map(type, options)).techniques
        return replace(self, techniques=(*others, *options))

    def without(self, *kinds: type) -> Request:
        """The request without its options of these classes."""
        return replace(
            self, techniques=tuple(one for one in self.techniques if not isinstance(one, kinds))
        )

    def alone(self) -> Request:
        """The request outside its group: it is let in without waiting for the others.

        What is asked once more of a request, or because of it, must not wait for a group that has ended.
        """
        return replace(self, group=None, group_size=1)


@dataclass(frozen=True)
class TokenProb:
    """A token with its natural-log probability."""

    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True)
class Token:
    """One generated token. `text` is what became printable with it, often but not always one piece."""

    token_id: int
    text: str
    logprob: float | None = None
    alternatives: tuple[TokenProb, ...] = ()


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Usage:
    """Where the prompt's tokens came from, and how long things took."""

    prompt_tokens: int
    completion_tokens: int
    exact: int = 0
    """Prompt tokens whose KV came from the store and equals a full prefill."""
    blended: int = 0
    shared: int = 0
    lossy: int = 0
    """Prompt tokens whose KV went through a lossy codec or was steered beforehand, or follows such KV."""
    recomputed: int = 0
    """Prompt tokens computed for this request."""
    stored: int = 0
    """Tokens at the prompt's beginning that the store held when it was planned, loaded or not."""
    declined: int = 0
    """Of `stored`, the ones that were computed because that is sooner than loading them, or than sharing."""
    queue_ms: float = 0.0
    ttft_ms: float = 0.0
    load_ms: float = 0.0
    """Reading stored KV; most of it passes while other layers are computed."""
    total_ms: float = 0.0
    tiers: Mapping[str, int] = field(default_factory=dict)
    """Reused tokens by the tier that supplied them."""
    levels: Mapping[str, int] = field(default_factory=dict)
    """Bytes that a node delivered against a deadline, by the encoding they came in."""
    moved: tuple[tuple[int, int], ...] = ()
    """Ranges of positions that took KV which was computed at another place, or by a sibling for this
    request; some tokens of them were computed again."""

    @property
    def cached_tokens(self) -> int:
        return self.exact + self.blended + self.shared + self.lossy


@dataclass(frozen=True)
class Finish:
    """The last event of a stream. `tail` is text that was held back as a possible stop string."""

    reason: FinishReason
    usage: Usage
    tail: str = ""
    stop: str | None = None
    """The stop string that was met, if one was."""
    spell_prompt: Callable[[], tuple[Token, ...]] = field(default=tuple, compare=False, repr=False)
    """Makes `prompt`."""

    @cached_property
    def prompt(self) -> tuple[Token, ...]:
        """The prompt's tokens with their log-probabilities, where they were asked for and the request was not
        cancelled; the first has none. Spelled out when first read, which takes a long prompt seconds."""
        return self.spell_prompt()


StreamEvent = Token | Finish


class Stream(Protocol):
    """A running request: iterate for its events; the last one is a Finish."""

    def __iter__(self) -> Iterator[StreamEvent]: ...

    def cancel(self) -> None:
        """Stop as soon as the current step is over; the stream then ends with CANCELLED."""

    def on_event(self, listener: Callable[[StreamEvent | Exception | None], None]) -> None:
        """Have events pushed to `listener` (from the engine's thread) in place of iterating.

        After the Finish, or an Exception, None is pushed and nothing more.
        """


class Generator(Protocol):
    """Anything that runs requests: the engine, or a stand-in for tests."""

    def submit(self, request: Request) -> Stream:
        """Queue a request. Raises PromptTooLong before anything is computed."""
