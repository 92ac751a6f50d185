"""POST /v1/chat/completions: a conversation, with documents beside it, to an answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import msgspec
from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from starlette.concurrency import run_in_threadpool

from kdn.core import Finish, Token, Usage
from kdn.serve.errors import Refused
from kdn.serve.openai.context import RequestContext
from kdn.serve.openai.encode import (
    chat_logprobs,
    finish_name,
    first_of_each,
    kdn_report,
    usage_report,
)
from kdn.serve.openai.parse import adapter_of, answer_room, conversation, sampling_of
from kdn.serve.openai.requests import ChatBody
from kdn.serve.openai.responses import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatDelta,
    ChatMessage,
    ChunkChoice,
)
from kdn.serve.openai.sse import DONE, event, failure
from kdn.serve.openai.streams import EventStream, Gathered, ResponseStreams, gather, unless_gone
from kdn.serve.openai.unsupported import refuse_unsupported

__all__ = ["chat_routes"]


def chat_routes(desk: RequestContext) -> APIRouter:
    """The route, bound to one server's parts."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat(body: ChatBody, request: HttpRequest) -> Response:
        call = await _begin(desk, body)
        if body.stream:
            return EventStream(call.chunks(), call.flight)
        answers = await unless_gone(request, call.flight, gather(call.flight, call.num_choices))
        if answers is None:
            return Response(status_code=499)
        return Response(msgspec.json.encode(call.whole(answers)), media_type="application/json")

    return router


async def _begin(desk: RequestContext, body: ChatBody) -> _Call:
    """Everything that can be refused is refused here, before a byte of the answer is sent."""
    refuse_unsupported(body.model_extra)
    adapter = adapter_of(desk.service, body.model)
    asked = _max_tokens(body)
    messages, documents = conversation(body.messages, body.documents)
    prompt = await run_in_threadpool(
        desk.service.prompt, messages, documents, body.cache_salt or ""
    )
    room = answer_room(desk.service, prompt.num_tokens, asked, desk.settings.default_max_tokens)
    sampling = sampling_of(body, desk.service.vocabulary.vocab_size, room, _logprobs(body))
    answer_id = f"chatcmpl-{desk.new_id()}"
    flight = desk.depart(answer_id, [(prompt, sampling)], body, adapter)
    return _Call(desk, body, flight, answer_id, desk.created(), adapter or desk.service.name)


def _max_tokens(body: ChatBody) -> int | None:
    old, new = body.max_tokens, body.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise Refused(
            f"max_tokens is {old} and max_completion_tokens is {new}: give one of them",
            param="max_completion_tokens",
        )
    return new if new is not None else old


def _logprobs(body: ChatBody) -> int | None:
    if body.top_logprobs is not None and not body.logprobs:
        raise Refused("top_logprobs needs logprobs: true", param="top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


@dataclass(frozen=True)
class _Call:
    """One chat under way: what its events become on the wire."""

    desk: RequestContext
    body: ChatBody
    flight: ResponseStreams
    answer_id: str
    created: int
    model: str

    @property
    def num_choices(self) -> int:
        return self.body.n or 1

    def whole(self, answers: list[Gathered]) -> ChatCompletion:
        prompts = first_of_each(answers, self.num_choices)
        return ChatCompletion(
            id=self.answer_id,
            created=self.created,
            model=self.model,
            choices=[self._choice(index, answer) for index, answer in enumerate(answers)],
            usage=usage_report([answer.ended.usage for answer in answers], prompts),
            kdn=kdn_report(prompts),
        )

    def _choice(self, index: int, answer: Gathered) -> ChatChoice:
        vocabulary = self.desk.service.vocabulary
        logprobs = chat_logprobs(answer.tokens, vocabulary) if self.body.logprobs else None
        finish = finish_name(answer.ended.reason)
        return ChatChoice(index, ChatMessage(answer.text), finish, logprobs)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The answer as server-sent events; an error after the start is the last event."""
        for index in range(self.num_choices):
            yield self._chunk(ChunkChoice(index, ChatDelta(role="assistant", content="")))
        usages: dict[int, Usage] = {}
        try:
            async for index, item in self.flight.events():
                if isinstance(item, Token):
                    if item.text or self.body.logprobs:
                        yield self._chunk(self._delta(index, item))
                    continue
                if item.tail:
                    yield self._chunk(ChunkChoice(index, ChatDelta(content=item.tail)))
                usages[index] = item.usage
                yield self._last(index, item)
        except Exception as error:  # noqa: BLE001 - the headers are sent: the error must travel as an event
            yield failure(error)
            return
        if self.body.stream_options and self.body.stream_options.include_usage:
            yield self._closing(usages)
        yield DONE

    def _delta(self, index: int, token: Token) -> ChunkChoice:
        vocabulary = self.desk.service.vocabulary
        logprobs = chat_logprobs([token], vocabulary) if self.body.logprobs else None
        return ChunkChoice(index, ChatDelta(content=token.text), logprobs=logprobs)

    def _last(self, index: int, finish: Finish) -> bytes:
        choice = ChunkChoice(index, ChatDelta(), finish_name(finish.reason))
        chunk = self._event([choice])
        if index == 0:
            chunk.kdn = kdn_report([finish.usage])
        return event(chunk)

    def _closing(self, usages: dict[int, Usage]) -> bytes:
        chunk = self._event([])
        chunk.usage = usage_report(list(usages.values()), [usages[0]])
        chunk.kdn = kdn_report([usages[0]])
        return event(chunk)

    def _chunk(self, choice: ChunkChoice) -> bytes:
        return event(self._event([choice]))

    def _event(self, choices: list[ChunkChoice]) -> ChatChunk:
        return ChatChunk(id=self.answer_id, created=self.created, model=self.model, choices=choices)
