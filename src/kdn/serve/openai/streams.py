"""The streams of one HTTP request: from the engine's thread to the event loop, gathered or sent as events.

The engine pushes each event to a listener, which hands it to the loop; no thread waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import msgspec
from fastapi import Request as HttpRequest
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from kdn.core import Finish, FinishReason, Request, Stream, StreamEvent, Token
from kdn.errors import Cancelled
from kdn.serve.connections import Handover
from kdn.serve.errors import Disconnected, fault_of
from kdn.serve.metrics import Metrics
from kdn.serve.service import ServedModel

__all__ = [
    "DONE",
    "EventStream",
    "GatheredAnswer",
    "ResponseStreams",
    "event",
    "failure",
    "gather",
    "one_line",
    "submit_all",
    "until_disconnect",
]

DONE = b"data: [DONE]\n\n"
_Pushed = StreamEvent | Exception | None
_TOGETHER = 64
"""Events that are handled before other requests have their turn: a backlog must not hold them up."""
T = TypeVar("T")


class ResponseStreams:
    """Running streams whose events arrive, in order, at one place on the event loop."""

    def __init__(self, num_streams: int, max_events: int, ended: ExitStack) -> None:
        """`ended` is closed with the streams; more than `max_events` waiting events end them."""
        self._streams: list[Stream] = []
        self._num_running = num_streams
        self._max_events = max_events
        self._num_waiting = 0
        self._aborted = False
        self._arrived: deque[tuple[int, _Pushed]] = deque()
        self._reader: asyncio.Future[None] | None = None
        """Who waits for an event."""
        self._handover = Handover.here()
        self._ended = ended

    def attach(self, stream: Stream, tell: Callable[[_Pushed], None]) -> None:
        """Follow one more stream. `tell` hears every event too, even after the client has left."""
        index = len(self._streams)
        self._streams.append(stream)

        def hear(event: _Pushed) -> None:
            tell(event)
            self._handover.call(partial(self._put, index, event))

        stream.on_event(hear)

    def _put(self, index: int, event: _Pushed) -> None:
        if self._aborted:
            return
        self._num_waiting += _weight(event)
        if self._num_waiting > self._max_events:
            self.abort(
                Cancelled(
                    f"more than {self._max_events} events wait to be read: the answer was ended; "
                    "read the stream faster, or ask for fewer answers or log-probabilities"
                )
            )
        else:
            self._add(index, event)

    def _add(self, index: int, event: _Pushed) -> None:
        self._arrived.append((index, event))
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    @property
    def is_running(self) -> bool:
        """Has any stream not ended, as far as its events were read?"""
        return self._num_running > 0

    async def events(self) -> AsyncIterator[tuple[int, StreamEvent]]:
        """Every event with the number of its stream, until all streams have ended.

        Raises what a stream failed with, and Cancelled when one was stopped from elsewhere.
        """
        while self.is_running:
            for arrived in await self.arrived():
                yield arrived

    async def arrived(self) -> list[tuple[int, StreamEvent]]:
        """As `events`, but all that have come since the last call together, and at most `_TOGETHER`."""
        if self._arrived:
            await asyncio.sleep(0)
        else:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        found: list[tuple[int, StreamEvent]] = []
        while self._arrived and len(found) < _TOGETHER:
            index, event = self._arrived[0]
            error = _error_of(event)
            if error is not None and found:
                break  # what came before it first
            self._arrived.popleft()
            self._num_waiting -= _weight(event)
            if error is not None:
                raise error
            if isinstance(event, Token | Finish):
                found.append((index, event))
            else:
                self._num_running -= 1
        return found

    def abort(self, error: Exception) -> None:
        """End all streams now: what waits is dropped, and `error` is the next and last event."""
        if self._aborted:
            return
        self._aborted = True
        self._arrived.clear()
        self._add(0, error)
        for stream in self._streams:
            stream.cancel()

    def close(self) -> None:
        """Stop what still runs. Harmless after the end, and when called again."""
        for stream in self._streams:
            stream.cancel()
        self._ended.close()


def submit_all(
    model: ServedModel,
    metrics: Metrics,
    requests: Sequence[Request],
    max_events: int,
    ended: ExitStack,
    note_end: Callable[[Request], Callable[[Finish | Exception], None]],
) -> ResponseStreams:
    """Submit all requests, or none: what runs already when one is refused is cancelled.

    `note_end` is told of each one that was submitted, and what it returns of how that one ends.
    """
    streams = ResponseStreams(len(requests), max_events, ended)
    try:
        for request in requests:
            note = _remembering(model, request)
            stream = model.engine.submit(request)
            streams.attach(stream, metrics.listener(note, note_end(request), model.name))
    except Exception:
        streams.close()
        raise
    return streams


def _weight(event: _Pushed) -> int:
    """What an event costs while it waits."""
    return 1 + len(event.alternatives) if isinstance(event, Token) else 1


def _error_of(event: _Pushed) -> Exception | None:
    """What ends the answer before its end."""
    if isinstance(event, Finish) and event.reason is FinishReason.CANCELLED:
        return Cancelled("the answer was stopped before its end")
    return event if isinstance(event, Exception) else None


def _remembering(model: ServedModel, request: Request) -> Callable[[StreamEvent], None]:
    """Collects an answer as it passes and hands its ids to the prompt maker at its end."""
    answer = GatheredAnswer()

    def note(event: StreamEvent) -> None:
        answer.add(event)
        if isinstance(event, Finish):
            ids = tuple(token.token_id for token in answer.tokens)
            model.prompts.remember(request.salt, answer.text, ids)

    return note


@dataclass
class GatheredAnswer:
    """One stream's events put together."""

    tokens: list[Token] = field(default_factory=list)
    finish: Finish | None = None
    num_characters: int = 0
    """Of the tokens' texts."""

    def add(self, event: StreamEvent) -> None:
        if isinstance(event, Token):
            self.tokens.append(event)
            self.num_characters += len(event.text)
        else:
            self.finish = event

    @property
    def text(self) -> str:
        tail = self.finish.tail if self.finish else ""
        return "".join(token.text for token in self.tokens) + tail

    @property
    def ended(self) -> Finish:
        """The Finish; to be asked for only after the stream has ended."""
        assert self.finish is not None
        return self.finish


async def gather(streams: ResponseStreams, num_streams: int) -> list[GatheredAnswer]:
    """Every stream to its end."""
    found = [GatheredAnswer() for _ in range(num_streams)]
    async for index, event in streams.events():
        found[index].add(event)
    return found


async def until_disconnect(
    request: HttpRequest, streams: ResponseStreams | None, work: Awaitable[T]
) -> T:
    """The result of `work`. Raises Disconnected when the client leaves first; nothing keeps running."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Disconnected
        return await task
    finally:
        gone.cancel()
        task.cancel()
        if streams is not None:
            streams.close()


async def _disconnect(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events; the streams are closed however the response ends."""

    def __init__(self, events: AsyncIterator[bytes], streams: ResponseStreams) -> None:
        # Proxies must hand each event on immediately.
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams.close()


def event(shape: msgspec.Struct) -> bytes:
    """One server-sent event. JSON has no raw line breaks, so one line suffices."""
    return b"data: " + one_line(msgspec.json.encode(shape)) + b"\n\n"


def failure(error: Exception) -> bytes:
    """The event that OpenAI's clients turn into an exception."""
    return b"data: " + one_line(fault_of(error).body()) + b"\n\n"


def one_line(json: bytes) -> bytes:
    """Some clients split lines where Unicode does: those three characters are escaped."""
    for raw, escaped in _UNICODE_LINE_ENDS:
        if raw in json:
            json = json.replace(raw, escaped)
    return json


_UNICODE_LINE_ENDS = tuple((c.encode(), b"\\u%04x" % ord(c)) for c in "\x85\u2028\u2029")
