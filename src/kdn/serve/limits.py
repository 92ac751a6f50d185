"""Every bound of the server, each enforced before the work it bounds, and how that work ends when it stops.

The constants bound the shape of one request; `Limits` bounds what may be held at one time, and is a
matter of the machine.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import AfterValidator, Field

from kdn.clock import Clock
from kdn.core import UnsoundJson, read_sound_json
from kdn.core.blocks import check_salt
from kdn.errors import BadInput, Cancelled
from kdn.serve.errors import Refused
from kdn.serve.service import Vocabulary
from kdn.serve.settings import Limits

__all__ = [
    "Abortable",
    "Backpressure",
    "Held",
    "Shutdown",
    "bounded_router",
    "check_length",
    "check_unicode",
    "check_values",
    "prefix_of",
    "read_json",
    "suffix_of",
]


MAX_MESSAGES = 4096
"""Turns of one conversation."""
MAX_PARTS = 1024
"""Content parts of one message."""
MAX_DOCUMENTS = 1024
"""Documents before one conversation."""
MAX_RANKED = 10_000
"""Documents of one ranking."""
MAX_QUESTIONS = 1024
"""Questions of one HTTP request; each holds a place in the queue."""
MAX_INPUTS = 2048
"""Texts of one request for embeddings."""
MAX_PROMPTS = 2048
"""Prompts of one request for completions; `Limits.choices` bounds the answers."""
MAX_LABELS = 4096
"""Labels or label tokens that one question chooses among."""
MAX_SCORES = 1 << 16
"""Probabilities of one answer: items times label tokens."""
MAX_SPANS = 256
"""Spans of one conversation that are stressed or muted."""
MAX_STOPS = 64
"""Stop strings, or stop tokens, of one request."""
MAX_STOP_CHARS = 1024
MAX_COUNTED_TOKENS = 1 << 17
"""A text may be longer than the context where it is only counted, or cut: up to so many tokens."""
MAX_BIASES = 1024
"""Tokens that `logit_bias` may name."""
MAX_TOKEN_IDS = 1 << 20
"""Token ids in one list."""
MAX_NAME_CHARS = 512
"""A model's name, a salt, a role, the name of a document or collection."""
MAX_SEED, MIN_SEED = 2**64 - 1, -(2**63)
"""What a random generator can be seeded with."""
MAX_COUNT = 2**31 - 1
"""Any other whole number."""
MAX_HEADER_BYTES = 1 << 16
"""Request line and headers together."""
HEAD_S = 10.0
"""By when the head of a request must be here, from its connection or its first byte on."""
KEEP_ALIVE_S = 75
"""How long a connection may rest between requests: longer than clients and balancers keep theirs (OpenAI's
client 5 s, most balancers 60 s), since a request that is sent while the server closes is lost."""
BODY_GAP_S = 30.0
"""How long a body may stand still, and how long a client may take nothing of its answer."""
MAX_JSON_VALUES = 1 << 21
"""Commas and brackets of one body: what it costs as Python objects, some 100 bytes each."""
MAX_JSON_DEPTH = 100


def _encodable(text: str) -> str:
    """JSON can spell half a surrogate pair, which is no text and would fail in the tokenizer."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("holds a lone surrogate, which is not valid Unicode") from error
    return text


def _usable_salt(salt: str) -> str:
    try:
        check_salt(salt)
    except BadInput as error:
        raise ValueError(str(error)) from error
    return salt


Text = Annotated[str, AfterValidator(_encodable)]
Name = Annotated[Text, Field(max_length=MAX_NAME_CHARS)]
Salt = Annotated[Name, AfterValidator(_usable_salt)]
StopText = Annotated[Text, Field(max_length=MAX_STOP_CHARS)]
TokenId = Annotated[int, Field(ge=0, le=MAX_COUNT)]
TokenIdList = Annotated[list[TokenId], Field(max_length=MAX_TOKEN_IDS)]
Prompts = Annotated[list[Text], Field(max_length=MAX_PROMPTS)]
Inputs = Annotated[list[Text], Field(max_length=MAX_INPUTS)]
Questions = Annotated[list[Text], Field(max_length=MAX_QUESTIONS)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]

_PIECE_CHARS = 1 << 16
_CHARS_PER_TOKEN = 8
"""A text that is not longer than this many characters a token of context is counted whole."""
_LOST_AT_CUTS = 256
"""By how many tokens, at most, a piece of text may count more than inside the whole."""


def check_length(
    texts: Iterable[str], vocabulary: Vocabulary, max_tokens: int, param: str, chars: int = 8
) -> None:
    """Raise Refused when `texts` together surely hold more than `max_tokens` tokens: up to `chars` characters
    a token they are believed. Costs no more than tokenising `max_tokens` tokens, however long they are."""
    texts = list(texts)
    num_chars = sum(map(len, texts))
    if num_chars <= chars * max_tokens:
        return
    num_tokens = 0
    for piece in _pieces(texts):
        num_tokens += max(len(vocabulary.encode(piece)) - _LOST_AT_CUTS, 0)
        if num_tokens > max_tokens:
            raise Refused(
                f"the text has {num_chars} characters, which are more tokens than the "
                f"{max_tokens} that are read: shorten it",
                param=param,
                code="context_length_exceeded",
            )


def prefix_of(text: str, vocabulary: Vocabulary, max_tokens: int) -> str:
    """A beginning of `text` that surely holds `max_tokens` tokens, or all of it."""
    if len(text) <= _CHARS_PER_TOKEN * max_tokens:
        return text
    num_tokens = 0
    for start in range(0, len(text), _PIECE_CHARS):
        stop = start + _PIECE_CHARS
        num_tokens += max(len(vocabulary.encode(text[start:stop])) - _LOST_AT_CUTS, 0)
        if num_tokens > max_tokens:
            return text[:stop]
    return text


def suffix_of(text: str, vocabulary: Vocabulary, max_tokens: int, *, special: bool = False) -> str:
    """An end of `text` that surely holds `max_tokens` tokens, or all of it.

    With `special` the names of special tokens in it count as those tokens.
    """
    num_tokens, start = 0, len(text) if len(text) > _CHARS_PER_TOKEN * max_tokens else 0
    while start > 0 and num_tokens <= max_tokens:
        stop, start = start, max(start - _PIECE_CHARS, 0)
        found = vocabulary.encode(text[start:stop], special=special)
        num_tokens += max(len(found) - _LOST_AT_CUTS, 0)
    return text[start:]


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    """All of the texts, in pieces of like size."""
    held: list[str] = []
    size = 0
    for text in texts:
        for start in range(0, len(text), _PIECE_CHARS):
            held.append(text[start : start + _PIECE_CHARS])
            size += len(held[-1])
            if size >= _PIECE_CHARS:
                yield "".join(held)
                held, size = [], 0
    yield "".join(held)


def check_unicode(value: object, param: str) -> None:
    """Raise Refused for a JSON value with half a surrogate pair anywhere in it: it is no text."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Refused(
            f"{param} holds a lone surrogate, which is not Unicode", param=param
        ) from error


def bounded_router() -> APIRouter:
    """A router whose JSON bodies are judged by their size in memory before they are read."""
    return APIRouter(route_class=_BoundedRoute)


class _BoundedRequest(Request):
    async def json(self) -> Any:
        return read_json(await self.body())


class _BoundedRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        inner = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            return await inner(_BoundedRequest(request.scope, request.receive))

        return bounded


def check_values(body: bytes) -> None:
    """Raise Refused (413) for a JSON text that would take far more memory than it has bytes."""
    num_values = sum(map(body.count, (b",", b"[", b"{")))
    if num_values > MAX_JSON_VALUES:
        raise Refused(
            f"the body holds about {num_values} values; at most {MAX_JSON_VALUES} are read: "
            "send several requests",
            status=413,
        )


def read_json(body: bytes) -> Any:
    """The value of a JSON text. Raises Refused, or JSONDecodeError for what is no JSON."""
    check_values(body)
    try:
        found = read_sound_json(body)
    except json.JSONDecodeError:
        raise
    except UnsoundJson as error:
        raise Refused(f"the body: {error}", param=error.key) from error
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:  # a number of thousands of digits, or bytes that are not UTF-8
        raise Refused(f"the body is not valid JSON: {error}") from error
    _check_depth(found)
    return found


def _check_depth(found: Any) -> None:
    level = [found] if isinstance(found, dict | list) else []
    for _ in range(MAX_JSON_DEPTH + 1):
        inner = [one.values() if isinstance(one, dict) else one for one in level]
        level = [one for many in inner for one in many if isinstance(one, dict | list)]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> Refused:
    return Refused(f"the body is nested deeper than {MAX_JSON_DEPTH} levels; send it flatter")


_TOKENS_PER_S = 2000
"""For `Retry-After`: how fast prompts are computed, a laptop's order of magnitude."""


@dataclass(frozen=True)
class Held:
    """What one HTTP request holds until it has ended."""

    requests: int = 0
    tokens: int = 0
    size_bytes: int = 0


@dataclass
class _Sum:
    """What is held together."""

    held: Counter[str] = field(default_factory=Counter)

    def add(self, more: Held, sign: int = 1) -> None:
        for name, value in vars(more).items():
            self.held[name] += sign * value

    def beyond(self, more: Held, bounds: Held) -> str | None:
        """The name of the bound that `more` would break. What is alone always fits."""
        for name, value in vars(more).items():
            now, most = self.held[name], getattr(bounds, name)
            if value and now and now + value > most:
                return name
        return None


class Backpressure:
    """Counts what callers hold, and refuses what is more than the limits. Used on the event loop."""

    def __init__(self, limits: Limits) -> None:
        self._of_one = Held(limits.caller_requests, limits.caller_tokens, limits.caller_bytes)
        self._of_all = Held(limits.all_requests, limits.all_tokens, limits.all_bytes)
        self._all = _Sum()
        self._callers: dict[str, _Sum] = {}

    @contextmanager
    def hold(self, caller: str, held: Held) -> Iterator[None]:
        """Hold as long as the `with` lasts. Raises Refused: 429 for the caller's bound, 503 for all's."""
        self.take(caller, held)
        try:
            yield
        finally:
            self.give_back(caller, held)

    def take(self, caller: str, held: Held) -> None:
        """Hold until it is given back, in one or in parts. Raises Refused, and holds nothing more then."""
        own = self._callers.get(caller, _Sum())
        if broken := own.beyond(held, self._of_one):
            raise self._refused(429, broken, "this key's", own, self._of_one)
        if broken := self._all.beyond(held, self._of_all):
            raise self._refused(503, broken, "the server's", self._all, self._of_all)
        self._callers.setdefault(caller, own).add(held)
        self._all.add(held)

    def give_back(self, caller: str, held: Held) -> None:
        """End what was taken, in one or several times."""
        own = self._callers.setdefault(caller, _Sum())  # what holds nothing may have ended before
        own.add(held, -1)
        self._all.add(held, -1)
        if not any(own.held.values()):
            del self._callers[caller]

    def check(self) -> None:
        """Raise AssertionError unless the sums of callers are the sum of all. For tests."""
        for name in vars(self._of_all):
            total = sum(own.held[name] for own in self._callers.values())
            assert total == self._all.held[name] >= 0, f"{name}: {total}, {self._all.held[name]}"

    def _refused(self, status: int, name: str, whose: str, held: _Sum, bounds: Held) -> Refused:
        wait_s = max(1, min(60, held.held["tokens"] // _TOKENS_PER_S))
        what = {"size_bytes": "bytes of bodies"}.get(name, name)
        return Refused(
            f"{held.held[name]} {what} are being worked on, and {whose} limit is "
            f"{getattr(bounds, name)}: send again in {wait_s} s",
            status=status,
            code="overloaded",
            retry_after_s=wait_s,
        )


class Abortable(Protocol):
    """An answer under way that can be ended with an error, which its client is told."""

    def abort(self, error: Exception) -> None: ...


class Shutdown:
    """The state of one server's stop. Used on the event loop; `begin` also in a signal handler."""

    def __init__(self, grace_s: float, clock: Clock) -> None:
        self.grace_s = grace_s
        self._clock = clock
        self._deadline_s: float | None = None
        self._num_active = 0
        self._running: set[Abortable] = set()

    @property
    def has_begun(self) -> bool:
        """Are new requests refused?"""
        return self._deadline_s is not None

    def begin(self, grace_s: float | None = None) -> None:
        """Refuse new requests from now on. Calling it again changes nothing."""
        if self._deadline_s is None:
            grace_s = self.grace_s if grace_s is None else grace_s
            self._deadline_s = self._clock.now() + grace_s

    @contextmanager
    def active(self) -> Iterator[None]:
        """One HTTP request is being answered inside."""
        self._num_active += 1
        try:
            yield
        finally:
            self._num_active -= 1

    def follow(self, answer: Abortable) -> None:
        """`answer` has begun."""
        self._running.add(answer)

    def forget(self, answer: Abortable) -> None:
        """`answer` has ended. Harmless for one that is not followed."""
        self._running.discard(answer)

    def is_over(self) -> bool:
        """May the server end? True when all is answered; at the deadline what runs is aborted."""
        if self._deadline_s is None:
            return False
        if self._num_active and self._clock.now() < self._deadline_s:
            return False
        error = Cancelled("the server is stopping and ended this answer before its end")
        for answer in list(self._running):
            answer.abort(error)
        return True
