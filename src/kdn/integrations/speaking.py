"""What the frameworks' chat models have in common: one conversation, plain or as a schema wants it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import BaseModel

from kdn.api import Kdn, Query
from kdn.core import Constraint, Finish, FinishReason, Sampling, StreamEvent
from kdn.errors import BadInput
from kdn.model import Message

__all__ = ["Said", "Speaker", "asked", "beside_the_loop", "on_a_thread", "parsed", "schema_of"]

T = TypeVar("T")

Schema = Mapping[str, Any] | type[BaseModel]

_ASKED: ContextVar[Query | None] = ContextVar("kdn_asked", default=None)
"""Set on a thread, in its copy of the context: the frameworks' verbs have no argument for it."""


@dataclass(frozen=True)
class Said:
    """A whole answer."""

    text: str
    finish: Finish


@dataclass(frozen=True)
class Speaker:
    """An open model with the wishes of one conversation; the model stays the caller's to close."""

    kdn: Kdn
    max_tokens: int
    temperature: float | None
    salt: str

    def events(
        self,
        turns: Sequence[Message],
        schema: Mapping[str, Any] | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[StreamEvent]:
        """Tokens and the end. A reader that leaves stops the answer. Raises KdnError."""
        own = self.kdn.model.sampling
        sampling = replace(
            own,
            max_tokens=self.max_tokens,
            temperature=own.temperature if self.temperature is None else self.temperature,
            stop=tuple(stop),
            constraint=None if schema is None else Constraint.json_schema(schema),
        )
        query = asked()
        if query is not None:
            query.check()
        stream = self.kdn.submit(self._request(turns, sampling))
        try:
            if query is not None:
                query.runs(stream.cancel)
            yield from stream
        finally:
            stream.cancel()

    def say(
        self,
        turns: Sequence[Message],
        schema: Mapping[str, Any] | None = None,
        stop: Sequence[str] = (),
    ) -> Said:
        """The whole answer. Raises KdnError."""
        pieces: list[str] = []
        for event in self.events(turns, schema, stop):
            if isinstance(event, Finish):
                return Said("".join(pieces) + event.tail, event)
            pieces.append(event.text)
        raise AssertionError("a stream ends with a Finish or an error")

    def _request(self, turns: Sequence[Message], sampling: Sampling) -> Any:
        return self.kdn.prompts.request(turns, sampling=sampling, salt=self.salt)


async def on_a_thread(verb: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """What a verb returns that runs on a thread.

    When the task that awaits it is cancelled, what the verb asks of the engine is stopped.
    """
    query = Query()

    def run() -> T:
        _ASKED.set(query)
        return verb(*arguments, **options)

    try:
        return await asyncio.to_thread(run)
    finally:
        query.cancel()


def asked() -> Query | None:
    """Withdraws what this thread asks of the engine; None where nobody can."""
    return _ASKED.get()


async def beside_the_loop(begin: Callable[[], Generator[T, None, None]]) -> AsyncGenerator[T, None]:
    """What a generator gives that is begun and runs on a thread.

    Once the reader leaves, what it asks of the engine is stopped, and it is closed at its next piece.
    """
    loop, found, query = asyncio.get_running_loop(), asyncio.Queue[T | None](), Query()

    def read() -> None:
        _ASKED.set(query)
        with closing(begin()) as pieces:
            for piece in pieces:
                if query.is_cancelled:
                    return
                loop.call_soon_threadsafe(found.put_nowait, piece)

    reading = asyncio.ensure_future(asyncio.to_thread(read))
    reading.add_done_callback(lambda _: found.put_nowait(None))
    try:
        while (piece := await found.get()) is not None:
            yield piece
        await reading
    finally:
        query.cancel()
        reading.cancel()


def schema_of(wanted: Schema) -> Mapping[str, Any]:
    """The JSON schema of a Pydantic class, or the one that was given."""
    return wanted if isinstance(wanted, Mapping) else wanted.model_json_schema()


def parsed(text: str, reason: FinishReason | str, wanted: Schema) -> Any:
    """An answer as an object of the Pydantic class, or as plain values.

    Raises BadInput for one that was cut off, and for one that only the class refuses.
    """
    if reason == FinishReason.LENGTH:
        raise BadInput("the answer was cut off before its JSON ended: give more max_tokens")
    try:
        plain = json.loads(text)
    except ValueError as error:
        raise BadInput(
            f"the answer ended before its JSON did ({error}): leave out `stop`"
        ) from error
    if isinstance(wanted, Mapping):
        return plain
    try:
        return wanted.model_validate_json(text)
    except ValueError as error:
        raise BadInput(
            f"the answer keeps to the schema and {wanted.__name__} refuses it: {error}"
        ) from error
