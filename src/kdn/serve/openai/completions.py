"""POST /v1/completions: text or token ids go on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import msgspec
from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from starlette.concurrency import run_in_threadpool

from kdn.core import Finish, Prompt, Role, Segment, Token, TokenIds, Usage
from kdn.serve.errors import Refused
from kdn.serve.openai.context import RequestContext
from kdn.serve.openai.encode import (
    completion_logprobs,
    finish_name,
    first_of_each,
    kdn_report,
    usage_report,
)
from kdn.serve.openai.parse import adapter_of, answer_room, check_ids, sampling_of
from kdn.serve.openai.requests import CompletionBody
from kdn.serve.openai.responses import Completion, CompletionChoice
from kdn.serve.openai.sse import DONE, event, failure
from kdn.serve.openai.streams import EventStream, Gathered, ResponseStreams, gather, unless_gone
from kdn.serve.openai.unsupported import refuse_unsupported
from kdn.serve.service import Vocabulary

__all__ = ["completion_routes"]


def completion_routes(desk: RequestContext) -> APIRouter:
    """The route, bound to one server's parts."""
    router = APIRouter()

    @router.post("/v1/completions")
    async def complete(body: CompletionBody, request: HttpRequest) -> Response:
        call = await _begin(desk, body)
        if body.stream:
            return EventStream(call.chunks(), call.flight)
        answers = await unless_gone(request, call.flight, gather(call.flight, call.num_answers))
        if answers is None:
            return Response(status_code=499)
        return Response(msgspec.json.encode(call.whole(answers)), media_type="application/json")

    return router


async def _begin(desk: RequestContext, body: CompletionBody) -> _Call:
    """Everything that can be refused is refused here, before a byte of the answer is sent."""
    refuse_unsupported(body.model_extra)
    _refuse_combinations(body)
    service = desk.service
    adapter = adapter_of(service, body.model)
    prompts = await run_in_threadpool(_token_prompts, desk, body)
    vocab_size = service.vocabulary.vocab_size
    wanted = []
    for ids in prompts:
        room = answer_room(service, len(ids), body.max_tokens, desk.settings.default_max_tokens)
        sampling = sampling_of(body, vocab_size, room, body.logprobs)
        wanted.append((Prompt((Segment(Role.QUESTION, ids),)), sampling))
    answer_id = f"cmpl-{desk.new_id()}"
    flight = desk.depart(answer_id, wanted, body, adapter)
    return _Call(desk, body, prompts, flight, answer_id, desk.created(), adapter or service.name)


def _refuse_combinations(body: CompletionBody) -> None:
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise Refused("best_of is supported only when it equals n", param="best_of")
    if body.echo and body.logprobs is not None:
        raise Refused(
            "echo with logprobs asks for logprobs of the prompt, which are not computed here",
            param="echo",
            code="unsupported_parameter",
        )


def _token_prompts(desk: RequestContext, body: CompletionBody) -> list[TokenIds]:
    vocabulary = desk.service.vocabulary
    prompts = [
        _begun(vocabulary, text) if isinstance(text, str) else text for text in _prompts(body)
    ]
    if not prompts or not all(prompts):
        raise Refused("a prompt is empty: there is nothing to go on from", param="prompt")
    for ids in prompts:
        check_ids(ids, vocabulary.vocab_size, "prompt")
    return prompts


def _begun(vocabulary: Vocabulary, text: str) -> TokenIds:
    """Raw text is the caller's whole prompt: special tokens in it count, and it begins as one."""
    ids = vocabulary.encode(text, special=True)
    begin = vocabulary.bos_ids
    return ids if not ids or ids[: len(begin)] == begin else begin + ids


def _prompts(body: CompletionBody) -> list[str | TokenIds]:
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
class _Call:
    """Completions under way; answer `i` belongs to prompt `i // n`."""

    desk: RequestContext
    body: CompletionBody
    prompts: list[TokenIds]
    flight: ResponseStreams
    answer_id: str
    created: int
    model: str

    @property
    def num_answers(self) -> int:
        return len(self.prompts) * (self.body.n or 1)

    def _echo(self, index: int) -> str:
        if not self.body.echo:
            return ""
        return self.desk.service.vocabulary.decode(self.prompts[index // (self.body.n or 1)])

    def whole(self, answers: list[Gathered]) -> Completion:
        prompts = first_of_each(answers, self.body.n or 1)
        return Completion(
            id=self.answer_id,
            created=self.created,
            model=self.model,
            choices=[self._choice(index, answer) for index, answer in enumerate(answers)],
            usage=usage_report([answer.ended.usage for answer in answers], prompts),
            kdn=kdn_report(prompts),
        )

    def _choice(self, index: int, answer: Gathered) -> CompletionChoice:
        finish = finish_name(answer.ended.reason)
        choice = CompletionChoice(index, self._echo(index) + answer.text, finish)
        if self.body.logprobs is not None:
            vocabulary = self.desk.service.vocabulary
            choice.logprobs = completion_logprobs(answer.tokens, vocabulary, 0)
        return choice

    async def chunks(self) -> AsyncIterator[bytes]:
        """The answers as server-sent events; an error after the start is the last event."""
        usages: dict[int, Usage] = {}
        written = [0] * self.num_answers
        for index in range(self.num_answers if self.body.echo else 0):
            yield self._chunk(CompletionChoice(index, self._echo(index)))
        try:
            async for index, item in self.flight.events():
                if isinstance(item, Token):
                    if item.text or self.body.logprobs is not None:
                        yield self._chunk(self._delta(index, item, written[index]))
                    written[index] += len(item.text)
                    continue
                usages[index] = item.usage
                yield self._last(index, item)
        except Exception as error:  # noqa: BLE001 - the headers are sent: the error must travel as an event
            yield failure(error)
            return
        if self.body.stream_options and self.body.stream_options.include_usage:
            yield self._closing(usages)
        yield DONE

    def _delta(self, index: int, token: Token, offset: int) -> CompletionChoice:
        choice = CompletionChoice(index, token.text)
        if self.body.logprobs is not None:
            vocabulary = self.desk.service.vocabulary
            choice.logprobs = completion_logprobs([token], vocabulary, offset)
        return choice

    def _last(self, index: int, finish: Finish) -> bytes:
        return self._chunk(CompletionChoice(index, finish.tail, finish_name(finish.reason)))

    def _closing(self, usages: dict[int, Usage]) -> bytes:
        ordered = [usages[index] for index in sorted(usages)]
        prompts = ordered[:: self.body.n or 1]
        chunk = self._event([])
        chunk.usage = usage_report(ordered, prompts)
        chunk.kdn = kdn_report(prompts)
        return event(chunk)

    def _chunk(self, choice: CompletionChoice) -> bytes:
        return event(self._event([choice]))

    def _event(self, choices: list[CompletionChoice]) -> Completion:
        return Completion(
            id=self.answer_id, created=self.created, model=self.model, choices=choices
        )
