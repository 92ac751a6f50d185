"""POST /v1/rag/query: a question, answered from the server's documents as suits it.

A query is several requests of the engine, so it runs on a thread of its own; its text and its end come
as the events of one stream, so that streaming, a client's leaving and a stop are those of other routes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Literal

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from msgspec import Struct
from pydantic import Field

from kdn.api import QueryOptions, QueryStream
from kdn.core import StreamEvent, Token
from kdn.errors import MissingExtra
from kdn.rag.metis import MAX_CHUNKS, Method, Preference
from kdn.serve.connections import Handover
from kdn.serve.errors import Refused
from kdn.serve.limits import Count, Name, Text, bounded_router
from kdn.serve.openai.context import RequestContext, refuse_unsupported
from kdn.serve.openai.requests import JobBody
from kdn.serve.openai.responses import (
    KdnReport,
    UsageReport,
    finish_name,
    json_response,
    kdn_report,
    usage_report,
)
from kdn.serve.openai.streams import (
    DONE,
    EventStream,
    ResponseStreams,
    event,
    failure,
    until_disconnect,
)

__all__ = ["RagQueryBody", "rag_routes"]

_THREADS = 64
"""Queries that run at one time; more wait for one of them to end."""
_MAX_TOKENS = 256


class RagQueryBody(JobBody):
    """A question about the documents that the server's library holds."""

    question: Text = Field(min_length=1)
    """What is to be answered."""
    stream: bool | None = None
    """Send the text as it comes, then the whole answer."""
    max_tokens: Count | None = None
    """The most tokens of the answer; 256 where nothing is said."""
    method: Literal["extract", "stuff", "map_rerank", "map_reduce"] | None = None
    """How the answer is made; chosen for the question where nothing is said."""
    max_chunks: int | None = Field(None, ge=1, le=MAX_CHUNKS)
    """Read so many chunks at most."""
    summary_tokens: int | None = Field(None, ge=1, le=1000)
    """The longest summary of a chunk; goes with `map_reduce`."""
    quality: Literal["fast", "balanced", "best"] | None = None
    """What to prefer among what is good enough; balanced where nothing is said."""
    deadline_ms: float | None = Field(None, gt=0, le=86_400_000)
    """When the answer is wanted; the best passage is quoted where no model keeps it."""
    reuse: Literal["exact", "blend"] | None = None
    """`blend` also reuses stored chunks that stood elsewhere; it approximates the answer."""
    ratio: float | None = Field(None, ge=0, le=1)
    """Of `blend`: the share of reused tokens that is recomputed."""
    always: bool | None = None
    """Answer also where the documents do not seem to say it."""


class _RagSource(Struct):
    source: str
    title: str
    heading: str
    text: str
    score: float


class _RagAnswer(Struct, kw_only=True):
    id: str
    object: str = "rag.answer"
    created: int
    model: str
    answer: str
    in_documents: bool
    finish_reason: str
    sources: list[_RagSource]
    configuration: Mapping[str, Any]
    usage: UsageReport
    kdn: KdnReport


class _RagDelta(Struct, kw_only=True):
    id: str
    object: str = "rag.delta"
    created: int
    model: str
    delta: str


def rag_routes(context: RequestContext) -> APIRouter:
    """The route, bound to one server's parts."""
    router = bounded_router()
    threads = ThreadPoolExecutor(_THREADS, "kdn-query")

    @router.post("/v1/rag/query")
    async def query(body: RagQueryBody, http: HttpRequest) -> Response:
        refuse_unsupported(body.model_extra)
        asked = _RagQuery(context, body, http)
        streams = asked.begin(threads)
        if body.stream:
            return EventStream(asked.events(streams), streams)
        return json_response(await until_disconnect(http, streams, asked.whole(streams)))

    return router


class _RagQuery:
    """One HTTP query. Raises Refused for what cannot be asked, MissingExtra without a library."""

    def __init__(self, context: RequestContext, body: RagQueryBody, http: HttpRequest) -> None:
        self._context = context
        self._job = context.job("rag", body, http)
        ask = self._job.served.ask
        if ask is None:
            raise MissingExtra("this server has no library of documents")
        if self._job.adapter is not None:
            raise Refused(
                "questions about documents are answered by the base model, not by an adapter",
                param="model",
            )
        self._stream = QueryStream(ask, body.question, _options(body, self._job.salt))
        self._num_tokens = len(body.question)

    def begin(self, threads: ThreadPoolExecutor) -> ResponseStreams:
        """The query running. Raises Refused beyond the caller's limits.

        It counts until its thread has ended, also where the client has left before.
        """
        context, ended, held = self._context, ExitStack(), ExitStack()
        held.enter_context(context.hold(self._job, 1, self._num_tokens))
        count = context.metrics.listener(lambda _: None, lambda _: None, self._job.served.name)
        handover = Handover.here()

        def tell(pushed: StreamEvent | Exception | None) -> None:
            count(pushed)
            if pushed is None:
                handover.call(held.close)

        streams = ResponseStreams(1, context.settings.limits.stream_events, ended)
        streams.attach(self._stream, tell)
        context.shutdown.follow(streams)
        ended.callback(context.shutdown.forget, streams)
        threads.submit(self._stream.run)
        return streams

    async def whole(self, streams: ResponseStreams) -> _RagAnswer:
        """The answer at its end."""
        async for _ in streams.events():
            pass
        return self._answer()

    async def events(self, streams: ResponseStreams) -> AsyncIterator[bytes]:
        """Pieces of text, the whole answer, and [DONE]; an error is the last event but that."""
        job = self._job
        try:
            async for _, pushed in streams.events():
                if isinstance(pushed, Token):
                    yield event(
                        _RagDelta(
                            id=job.id, created=job.created, model=job.model, delta=pushed.text
                        )
                    )
            yield event(self._answer())
        except Exception as error:  # noqa: BLE001 - the headers are sent: it must travel as an event
            yield failure(error)
        yield DONE

    def _answer(self) -> _RagAnswer:
        job, answer = self._job, self._stream.answer
        assert answer is not None, "a stream that ended well has an answer"
        assert answer.report is not None, "an answer from documents says how it was made"
        return _RagAnswer(
            id=job.id,
            created=job.created,
            model=job.model,
            answer=answer.text,
            in_documents=answer.in_documents,
            finish_reason=finish_name(answer.finish_reason),
            sources=[
                _RagSource(one.source, one.title, one.heading, one.text, one.score)
                for one in answer.sources
            ],
            configuration=answer.report.as_json(),
            usage=usage_report([answer.usage], [answer.usage]),
            kdn=kdn_report([answer.usage]),
        )


def _options(body: RagQueryBody, salt: Name) -> QueryOptions:
    return QueryOptions(
        max_tokens=body.max_tokens or _MAX_TOKENS,
        method=None if body.method is None else Method(body.method),
        max_chunks=body.max_chunks,
        summary_tokens=body.summary_tokens,
        quality=Preference(body.quality or Preference.BALANCED),
        deadline_ms=body.deadline_ms,
        salt=salt,
        reuse=body.reuse or "exact",
        ratio=body.ratio,
        always=bool(body.always),
    )
