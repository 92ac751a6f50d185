"""POST /v1/chat/completions and /v1/completions: a conversation, or text or token ids, go on.

Both are the same work in two shapes: `_Answers` runs and streams, `_Chat` and `_Completion` word it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from kdn.core import (
    Finish,
    Prompt,
    Request,
    Retention,
    Role,
    Sampling,
    Segment,
    Token,
    TokenIds,
    Usage,
)
from kdn.serve.errors import Refused
from kdn.serve.limits import MAX_SEED, bounded_router, check_length
from kdn.serve.openai.context import (
    HttpJob,
    RequestContext,
    answer_room,
    chat_prompt,
    check_ids,
    conversation,
    refuse_unsupported,
    sampling_of,
)
from kdn.serve.openai.requests import ChatBody, CompletionBody, KdnOptions, SamplingBody
from kdn.serve.openai.responses import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatDelta,
    ChatMessage,
    ChunkChoice,
    Completion,
    CompletionChoice,
    chat_logprobs,
    completion_logprobs,
    finish_name,
    json_response,
    kdn_report,
    usage_report,
)
from kdn.serve.openai.streams import (
    DONE,
    EventStream,
    GatheredAnswer,
    ResponseStreams,
    event,
    failure,
    gather,
    until_disconnect,
)
from kdn.serve.openai.techniques import chat_techniques, text_techniques
from kdn.serve.service import ServedModel, Vocabulary

__all__ = ["generate_routes"]


def generate_routes(context: RequestContext) -> APIRouter:
    """The two routes, bound to one server's parts."""
    router = bounded_router()

    @router.post("/v1/chat/completions")
    async def chat(body: ChatBody, http: HttpRequest) -> Response:
        return await (await _begin_chat(context, body, http)).response(http)

    @router.post("/v1/completions")
    async def complete(body: CompletionBody, http: HttpRequest) -> Response:
        return await (await _begin_completion(context, body, http)).response(http)

    return router


# Everything that can be refused is refused before a byte of the answer is sent.


async def _begin_chat(context: RequestContext, body: ChatBody, http: HttpRequest) -> _Chat:
    refuse_unsupported(body.model_extra)
    job, model = context.job("chatcmpl", body, http), context.model
    asked = _max_tokens(body)
    messages, documents = conversation(body.messages, body.documents)
    prompt = await context.in_thread(chat_prompt, model, messages, documents, job.salt)
    room = answer_room(model, prompt.num_tokens, asked, context.settings.default_max_tokens)
    sampling = sampling_of(body, model, room, _logprobs(body))
    techniques: tuple[object, ...] = ()
    if body.kdn is not None:
        techniques = await context.in_thread(
            chat_techniques, body.kdn, model, prompt, messages, documents
        )
    asked_for = _requests(context, job, body, [(prompt, sampling)], techniques)
    streams = context.submit_all(job, asked_for)
    return _Chat(job, body, model.vocabulary, streams, [prompt])


async def _begin_completion(
    context: RequestContext, body: CompletionBody, http: HttpRequest
) -> _Completion:
    refuse_unsupported(body.model_extra)
    _refuse_combinations(body)
    job, model = context.job("cmpl", body, http), context.model
    prompts = await context.in_thread(_token_prompts, model, body)
    wanted = []
    for prompt in prompts:
        room = answer_room(
            model, prompt.num_tokens, body.max_tokens, context.settings.default_max_tokens
        )
        wanted.append((prompt, sampling_of(body, model, room, body.logprobs)))
    techniques = text_techniques(body.kdn) if body.kdn is not None else ()
    streams = context.submit_all(job, _requests(context, job, body, wanted, techniques))
    return _Completion(job, body, model.vocabulary, streams, prompts)


def _requests(
    context: RequestContext,
    job: HttpJob,
    body: SamplingBody,
    prompts: Sequence[tuple[Prompt, Sampling]],
    techniques: tuple[object, ...],
) -> list[Request]:
    """`n` requests a prompt, prompts in order."""
    options, choices = body.kdn or KdnOptions(), body.n or 1
    if len(prompts) * choices > context.settings.limits.choices:
        raise Refused(
            f"{len(prompts)} prompts with n={choices} ask for more than "
            f"{context.settings.limits.choices} answers",
            param="n",
        )
    return [
        job.request(
            index * choices + choice,
            prompt,
            _seeded(sampling, choice),
            reuse=options.reuse is not False,
            techniques=techniques,
            retention=Retention(options.keep),
        )
        for index, (prompt, sampling) in enumerate(prompts)
        for choice in range(choices)
    ]


def _seeded(sampling: Sampling, choice: int) -> Sampling:
    """One seed must not give `n` equal answers."""
    if sampling.seed is None or choice == 0:
        return sampling
    return replace(sampling, seed=(sampling.seed + choice) % (MAX_SEED + 1))


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


def _refuse_combinations(body: CompletionBody) -> None:
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise Refused("best_of is supported only when it equals n", param="best_of")
    if body.echo and body.logprobs is not None:
        raise Refused(
            "echo with logprobs asks for logprobs of the prompt, which are not computed here",
            param="echo",
            code="unsupported_parameter",
        )


def _token_prompts(model: ServedModel, body: CompletionBody) -> list[Prompt]:
    vocabulary, prompts = model.vocabulary, []
    for given in _given_prompts(body):
        if isinstance(given, str):
            check_length([given], vocabulary, model.max_context, "prompt")
        prompts.append(_ids(vocabulary, given))
    if not prompts or not all(prompts):
        raise Refused("a prompt is empty: there is nothing to go on from", param="prompt")
    for ids in prompts:
        check_ids(ids, vocabulary.vocab_size, "prompt")
    return [Prompt((Segment(Role.QUESTION, ids),)) for ids in prompts]


def _ids(vocabulary: Vocabulary, given: str | TokenIds) -> TokenIds:
    """Raw text is the caller's whole prompt: special tokens in it count, and it begins as one."""
    if not isinstance(given, str):
        return given
    ids = vocabulary.encode(given, special=True)
    begin = vocabulary.bos_ids
    return ids if not ids or ids[: len(begin)] == begin else begin + ids


def _given_prompts(body: CompletionBody) -> list[str | TokenIds]:
    """A string, strings, ids or lists of ids, all as a list of prompts."""
    if isinstance(body.prompt, str):
        return [body.prompt]
    ids = [item for item in body.prompt if isinstance(item, int)]
    if ids:
        return [tuple(ids)]
    return [
        item if isinstance(item, str) else tuple(item)
        for item in body.prompt
        if not isinstance(item, int)
    ]


@dataclass(frozen=True)
class _Answers(ABC):
    """Answers under way; answer `i` belongs to prompt `i // n`. Subclasses give them a shape."""

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
        whole = self.chunk([self.choice(index, one) for index, one in enumerate(answers)])
        usages = [answer.ended.usage for answer in answers]
        return json_response(await self._account(whole, usages))

    async def _events(self) -> AsyncIterator[bytes]:
        """Server-sent events; an error after the start is told by the last event but [DONE]."""
        usages: dict[int, Usage] = {}
        written: dict[int, int] = {}
        try:
            async for index, item in self.streams.events():
                if index not in written:
                    written[index] = 0
                    for choice in self.opening(index):
                        yield event(self.chunk([choice], streamed=True))
                if isinstance(item, Finish):
                    usages[index] = item.usage
                    for shape in self.ending(index, item):
                        yield event(shape)
                    continue
                if item.text or self.logprobs_wanted:
                    choice = self.delta(index, item, written[index])
                    yield event(self.chunk([choice], streamed=True))
                written[index] += len(item.text)
        except Exception as error:  # noqa: BLE001 - the headers are sent: the error must travel as an event
            yield failure(error)
        else:
            options = self.body.stream_options
            if self._wants_why or (options and options.include_usage):
                ended = [usages[index] for index in sorted(usages)]
                yield event(await self._account(self.chunk([], streamed=True), ended))
        yield DONE

    @property
    def _wants_why(self) -> bool:
        return self.body.kdn is not None and self.body.kdn.why

    async def _account(self, chunk: Any, usages: list[Usage]) -> Any:
        """The shape with what was used, and why no more was reused where that was asked for."""
        first_of_each = usages[:: self.per_prompt]
        chunk.usage = usage_report(usages, first_of_each)
        chunk.kdn = kdn_report(first_of_each)
        if self._wants_why:
            chunk.kdn.why = await self.job.explain(self.job.id)
        return chunk

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

    @abstractmethod
    def delta(self, index: int, token: Token, offset: int) -> Any:
        """One token; `offset` characters of the answer stand before it."""

    @abstractmethod
    def ending(self, index: int, finish: Finish) -> Iterator[Any]:
        """The last events of an answer."""


class _Chat(_Answers):
    """In the shape of chat."""

    @property
    def logprobs_wanted(self) -> bool:
        return bool(self.body.logprobs)

    def chunk(self, choices: list[Any], *, streamed: bool = False) -> Any:
        kind = ChatChunk if streamed else ChatCompletion
        return kind(id=self.job.id, created=self.job.created, model=self.job.model, choices=choices)

    def choice(self, index: int, answer: GatheredAnswer) -> ChatChoice:
        logprobs = self._logprobs(answer.tokens)
        finish = finish_name(answer.ended.reason)
        return ChatChoice(index, ChatMessage(answer.text), finish, logprobs)

    def opening(self, index: int) -> Iterator[ChunkChoice]:
        """The role, not sooner: load generators take the first event for the first token."""
        yield ChunkChoice(index, ChatDelta(role="assistant", content=""))

    def delta(self, index: int, token: Token, offset: int) -> ChunkChoice:
        delta = ChatDelta(content=token.text)
        return ChunkChoice(index, delta, logprobs=self._logprobs([token]))

    def ending(self, index: int, finish: Finish) -> Iterator[ChatChunk]:
        if finish.tail:
            choice = ChunkChoice(index, ChatDelta(content=finish.tail))
            yield self.chunk([choice], streamed=True)
        choice = ChunkChoice(index, ChatDelta(), finish_name(finish.reason))
        last: ChatChunk = self.chunk([choice], streamed=True)
        if index == 0:
            last.kdn = kdn_report([finish.usage])
        yield last

    def _logprobs(self, tokens: Sequence[Token]) -> Any:
        return chat_logprobs(tokens, self.vocabulary) if self.logprobs_wanted else None


class _Completion(_Answers):
    """In the shape of plain completions."""

    @property
    def logprobs_wanted(self) -> bool:
        return self.body.logprobs is not None

    def chunk(self, choices: list[Any], *, streamed: bool = False) -> Any:
        return Completion(
            id=self.job.id, created=self.job.created, model=self.job.model, choices=choices
        )

    def choice(self, index: int, answer: GatheredAnswer) -> CompletionChoice:
        finish = finish_name(answer.ended.reason)
        text = self._echo(index) + answer.text
        return CompletionChoice(index, text, finish, self._logprobs(answer.tokens, 0))

    def opening(self, index: int) -> Iterator[CompletionChoice]:
        if self.body.echo:
            yield CompletionChoice(index, self._echo(index))

    def delta(self, index: int, token: Token, offset: int) -> CompletionChoice:
        return CompletionChoice(index, token.text, logprobs=self._logprobs([token], offset))

    def ending(self, index: int, finish: Finish) -> Iterator[Completion]:
        choice = CompletionChoice(index, finish.tail, finish_name(finish.reason))
        yield self.chunk([choice], streamed=True)

    def _echo(self, index: int) -> str:
        """The prompt as it was given; of ids, with the special tokens among them."""
        if not self.body.echo:
            return ""
        number = index // self.per_prompt
        given = _given_prompts(self.body)[number]
        if isinstance(given, str):
            return given
        return self.vocabulary.decode(given, special=True)

    def _logprobs(self, tokens: Sequence[Token], offset: int) -> Any:
        if not self.logprobs_wanted:
            return None
        return completion_logprobs(tokens, self.vocabulary, offset)
