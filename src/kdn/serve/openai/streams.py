"""The streams of one HTTP request: from the engine's thread to the event loop, gathered or sent as events.

The engine pushes each event to a listener, which hands it to the loop; no thread waits.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from fastapi import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from kdn.core import Finish, FinishReason, Prompt, Request, Stream, StreamEvent, Token, Usage
from kdn.errors import Cancelled
from kdn.serve.connections import Handover
from kdn.serve.errors import Disconnected, fault_of
from kdn.serve.metrics import Metrics
from kdn.serve.openai.requests import KdnOptions
from kdn.serve.openai.responses import (
    KdnReport,
    UsageReport,
    json_response,
    kdn_report,
    usage_report,
)
from kdn.serve.service import ServedModel, Vocabulary

if TYPE_CHECKING:
    from kdn.serve.openai.context import HttpJob

__all__ = [
    "DONE",
    "Answers",
    "EventStream",
    "GatheredAnswer",
    "ResponseStreams",
    "event",
    "failure",
    "gather",
    "submit_all",
    "until_disconnect",
]

DONE = b"data: [DONE]\n\n"
_Pushed = StreamEvent | Exception | None
T = TypeVar("T")


class ResponseStreams:
    """Running streams whose events arrive, in order, at one place on the event loop."""

    def __init__(self, num_streams: int, max_events: int, ended: ExitStack) -> None:
        """`ended` is closed with the streams; more than `max_events` waiting events end them."""
        self._streams: list[Stream] = []
        self._num_streams = num_streams
        self._max_events = max_events
        self._num_waiting = 0
        self._aborted = False
        self._arrived: asyncio.Queue[tuple[int, _Pushed]] = asyncio.Queue()
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
            self._arrived.put_nowait((index, event))

    async def events(self) -> AsyncIterator[tuple[int, StreamEvent]]:
        """Every event with the number of its stream, until all streams have ended.

        Raises what a stream failed with, and Cancelled when one was stopped from elsewhere.
        """
        running = self._num_streams
        while running:
            if not self._arrived.empty():
                # A backlog must not keep the loop from other requests, or from a client's leaving.
                await asyncio.sleep(0)
            index, event = await self._arrived.get()
            self._num_waiting -= _weight(event)
            if isinstance(event, Exception):
                raise event
            if event is None:
                running -= 1
                continue
            if isinstance(event, Finish) and event.reason is FinishReason.CANCELLED:
                raise Cancelled("the answer was stopped before its end")
            yield index, event

    def abort(self, error: Exception) -> None:
        """End all streams now: what waits is dropped, and `error` is the next and last event."""
        if self._aborted:
            return
        self._aborted = True
        while not self._arrived.empty():
            self._arrived.get_nowait()
        self._arrived.put_nowait((0, error))
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


def _remembering(model: ServedModel, request: Request) -> Callable[[StreamEvent], None]:
    """Collects an answer as it passes and hands its ids to the prompt maker at a natural end."""
    answer = GatheredAnswer()

    def note(event: StreamEvent) -> None:
        answer.add(event)
        if isinstance(event, Finish) and event.reason is FinishReason.STOP and event.stop is None:
            ids = tuple(token.token_id for token in answer.tokens)
            model.prompts.remember(request.salt, answer.text, ids)

    return note


@dataclass
class GatheredAnswer:
    """One stream's events put together."""

    tokens: list[Token] = field(default_factory=list)
    finish: Finish | None = None

    def add(self, event: StreamEvent) -> None:
        if isinstance(event, Token):
            self.tokens.append(event)
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
    return b"data: " + _one_line(msgspec.json.encode(shape)) + b"\n\n"


def failure(error: Exception) -> bytes:
    """The event that OpenAI's clients turn into an exception."""
    return b"data: " + _one_line(fault_of(error).body()) + b"\n\n"


def _one_line(json: bytes) -> bytes:
    """Some clients split lines where Unicode does: those three characters are escaped."""
    for raw, escaped in _UNICODE_LINE_ENDS:
        if raw in json:
            json = json.replace(raw, escaped)
    return json


_UNICODE_LINE_ENDS = tuple((c.encode(), b"\\u%04x" % ord(c)) for c in "\x85\u2028\u2029")


@dataclass(frozen=True)
class Answers(ABC):
    """Answers under way; answer `i` belongs to prompt `i // per_prompt`. Subclasses give them a shape."""

    job: HttpJob
    body: Any
    """ChatBody or CompletionBody, whichever the subclass is made for."""
    vocabulary: Vocabulary
    streams: ResponseStreams
    prompts: list[Prompt]

    @property
    def per_prompt(self) -> int:
        return self.body.n or 1

    async def response(self, http: HttpRequest) -> Response:
        """All answers at their end, or a stream of events. Raises Disconnected."""
        if self.body.stream:
            return EventStream(self._events(), self.streams)
        num_answers = len(self.prompts) * self.per_prompt
        answers = await until_disconnect(http, self.streams, gather(self.streams, num_answers))
        shown = self.shown(answers)
        whole = self.chunk([self.choice(index, one) for index, one in enumerate(shown)])
        drawn = [token.token_id for token in answers[0].tokens]
        whole = await self._account(whole, [answer.ended.usage for answer in answers], drawn)
        self.tell_prompts(whole, shown)
        return json_response(whole)

    def shown(self, answers: list[GatheredAnswer]) -> list[GatheredAnswer]:
        """Those that are given out, in order."""
        return answers

    @abstractmethod
    def tell_prompts(self, whole: Any, answers: list[GatheredAnswer]) -> None:
        """Add what was asked for of the prompts' own tokens."""

    async def _events(self) -> AsyncIterator[bytes]:
        """Server-sent events; an error after the start is told by the last event but [DONE]."""
        usages: dict[int, Usage] = {}
        written: dict[int, int] = {}
        drawn: dict[int, list[int]] = {0: []}
        try:
            async for index, item in self.streams.events():
                if index not in written:
                    written[index] = 0
                    for choice in self.opening(index):
                        yield event(self._so_far(self.chunk([choice], streamed=True), index, 0))
                if isinstance(item, Finish):
                    usages[index] = item.usage
                    for shape in self.ending(index, item):
                        yield event(self._so_far(shape, index, item.usage.completion_tokens))
                    continue
                drawn.setdefault(index, []).append(item.token_id)
                for choice in self.deltas(index, item, written[index]):
                    shape = self.chunk([choice], streamed=True)
                    yield event(self._so_far(shape, index, len(drawn[index])))
                written[index] += len(item.text)
        except Exception as error:  # noqa: BLE001 - the headers are sent: the error must travel as an event
            yield failure(error)
        else:
            options = self.body.stream_options
            if self._wants_more or (options and options.include_usage):
                ended = [usages[index] for index in sorted(usages)]
                yield event(await self._account(self.chunk([], streamed=True), ended, drawn[0]))
        yield DONE

    def _so_far(self, shape: Any, index: int, num_tokens: int) -> Any:
        """The shape with the tokens of its answer up to here, where every event is to tell them."""
        options = self.body.stream_options
        if options and options.continuous_usage_stats:
            prompt = self.prompts[index // self.per_prompt].num_tokens
            shape.usage = UsageReport(prompt, num_tokens, prompt + num_tokens)
        return shape

    @property
    def _wants_more(self) -> bool:
        return self.body.kdn is not None and (self.body.kdn.why or self.body.kdn.steer_report)

    async def _account(self, chunk: Any, usages: list[Usage], drawn: list[int]) -> Any:
        """The shape with what was used and what `report` tells."""
        first_of_each = usages[:: self.per_prompt]
        chunk.usage = usage_report(usages, first_of_each)
        chunk.kdn = await self.report(first_of_each, drawn)
        return chunk

    async def report(self, prompts: list[Usage], drawn: list[int]) -> KdnReport:
        """What kdn did for the prompts, and what was asked for beside it: `drawn` is the first answer."""
        report, asked = kdn_report(prompts), self.body.kdn or KdnOptions()
        if asked.why:
            report.why = await self.job.explain(self.job.id)
        if asked.steer_report:
            report.steering = await self.job.steering(self.job, drawn)
        return report

    @property
    @abstractmethod
    def logprobs_wanted(self) -> bool: ...

    @abstractmethod
    def chunk(self, choices: list[Any], *, streamed: bool = False) -> Any:
        """The shape around choices: of a whole answer, or of one event."""

    @abstractmethod
    def choice(self, index: int, answer: GatheredAnswer) -> Any:
        """A whole answer."""

    @abstractmethod
    def opening(self, index: int) -> Iterator[Any]:
        """What goes out with an answer's first token, before it."""

    def deltas(self, index: int, token: Token, offset: int) -> Iterator[Any]:
        """What a token adds, if it adds anything."""
        if token.text or self.logprobs_wanted:
            yield self.delta(index, token, offset)

    @abstractmethod
    def delta(self, index: int, token: Token, offset: int) -> Any:
        """One token; `offset` characters of the answer stand before it."""

    @abstractmethod
    def ending(self, index: int, finish: Finish) -> Iterator[Any]:
        """The last events of an answer."""
