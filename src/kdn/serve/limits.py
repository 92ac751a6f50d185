"""Every bound of the server, each enforced before the work it bounds.

The constants bound the shape of one request; `Limits` bounds what may be held at one time, and is a
matter of the machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import AfterValidator, Field

from kdn.config import ServeConfig
from kdn.errors import BadConfig
from kdn.serve.errors import Refused
from kdn.serve.service import Vocabulary

__all__ = ["Limits", "bounded_router", "check_length", "check_values", "prefix_of", "read_json"]

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
MAX_STOPS = 64
"""Stop strings, or stop tokens, of one request."""
MAX_STOP_CHARS = 1024
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


Text = Annotated[str, AfterValidator(_encodable)]
Name = Annotated[Text, Field(max_length=MAX_NAME_CHARS)]
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

_DEFAULTS = ServeConfig()


@dataclass(frozen=True)
class Limits:
    """What a server holds at one time. A caller is known by its API key.

    Raises BadConfig for a bound below 1.
    """

    body_bytes: int = _DEFAULTS.max_body_bytes
    """Of one HTTP request."""
    choices: int = 128
    """Answers (prompts times `n`) of one HTTP request."""
    caller_requests: int = _DEFAULTS.max_requests // 2
    """Requests that have not ended, of one caller. Each document of a ranking is one."""
    all_requests: int = _DEFAULTS.max_requests
    caller_tokens: int = _DEFAULTS.max_tokens // 2
    """Prompt tokens of requests that have not ended, of one caller. One request always fits."""
    all_tokens: int = _DEFAULTS.max_tokens
    caller_bytes: int = 256 << 20
    """Bodies of HTTP requests that have not been answered, of one caller."""
    all_bytes: int = 512 << 20
    stream_events: int = 1 << 13
    """Events that wait for a client that reads slowly; an alternative of a token counts as one."""

    @classmethod
    def of(cls, config: ServeConfig) -> Limits:
        """As the settings say."""
        return cls(
            body_bytes=config.max_body_bytes,
            caller_requests=max(config.max_requests // 2, 1),
            all_requests=config.max_requests,
            caller_tokens=max(config.max_tokens // 2, 1),
            all_tokens=config.max_tokens,
        )

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise BadConfig(f"the limit {name} is {value}; it must be at least 1")


def check_length(texts: Iterable[str], vocabulary: Vocabulary, max_tokens: int, param: str) -> None:
    """Raise Refused when `texts` together surely hold more than `max_tokens` tokens.

    Costs no more than tokenising `max_tokens` tokens, however long the texts are.
    """
    texts = list(texts)
    num_chars = sum(map(len, texts))
    if num_chars <= _CHARS_PER_TOKEN * max_tokens:
        return
    num_tokens = 0
    for piece in _pieces(texts):
        num_tokens += max(len(vocabulary.encode(piece)) - _LOST_AT_CUTS, 0)
        if num_tokens > max_tokens:
            raise Refused(
                f"the text has {num_chars} characters, which are more tokens than the "
                f"{max_tokens} that the context holds: shorten it",
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
        found = json.loads(body)
    except json.JSONDecodeError:
        raise
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
