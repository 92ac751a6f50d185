"""POST /v1/chat/completions: a conversation goes on.

`Answers` runs and streams, and `Chat` words it; `completions.py` does the same for plain texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from kdn.core import Constraint, Finish, Prompt, Request, Retention, Sampling, Token
from kdn.serve.errors import Refused
from kdn.serve.limits import MAX_SEED, bounded_router
from kdn.serve.openai.answers import Answers
from kdn.serve.openai.context import (
    HttpJob,
    RequestContext,
    answer_room,
    biases_of,
    chat_prompt,
    check_ids,
    conversation,
    refuse_unsupported,
    truncated,
)
from kdn.serve.openai.requests import ChatBody, KdnOptions, SamplingBody
from kdn.serve.openai.responses import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatDelta,
    ChatMessage,
    ChunkChoice,
    chat_logprobs,
    finish_name,
    kdn_report,
    prompt_logprobs,
)
from kdn.serve.openai.streams import GatheredAnswer
from kdn.serve.openai.structured import ConstrainedBody, constraint_of
from kdn.serve.openai.techniques import chat_techniques
from kdn.serve.openai.tools import TemplateBody, with_template
from kdn.serve.service import ServedModel

__all__ = [
    "Chat",
    "begin_chat",
    "chat_routes",
    "check_choices",
    "constrained",
    "requests_of",
    "sampling_of",
]


def chat_routes(context: RequestContext) -> APIRouter:
    """The route, bound to one server's parts."""
    router = bounded_router()

    @router.post("/v1/chat/completions")
    async def chat(body: ChatBody, http: HttpRequest) -> Response:
        return await (await begin_chat(context, body, http)).response(http)

    return router


# Everything that can be refused is refused before a byte of the answer is sent.


def _refuse_combinations(body: SamplingBody) -> None:
    if body.stream and body.prompt_logprobs is not None:
        raise Refused(
            "prompt_logprobs are told with the whole answer; leave out stream",
            param="prompt_logprobs",
        )
    if body.kdn and body.kdn.steer and body.prompt_logprobs is not None:
        raise Refused(
            "prompt_logprobs are those of a prompt that is not steered", param="kdn.steer"
        )


async def begin_chat(context: RequestContext, body: ChatBody, http: HttpRequest) -> Chat:
    """The answers to a chat, under way. Raises Refused, and what the engine refuses with."""
    refuse_unsupported(body.model_extra)
    _refuse_combinations(body)
    job = context.job("chatcmpl", body, http)
    model = job.served
    asked = _max_tokens(body)
    messages, documents = conversation(body.messages, body.documents, model.prompts)
    options, use = None, None
    if body.model_fields_set & TemplateBody.model_fields.keys():
        messages, options, use = await context.in_thread(with_template, body, messages, model)
    most = body.truncate_prompt_tokens
    prompt = await context.in_thread(
        chat_prompt, model, messages, documents, job.salt, options, is_cut=most is not None
    )
    prompt = truncated(prompt, most, model.max_context - (asked or 1))
    room = answer_room(model, prompt.num_tokens, asked, context.settings.default_max_tokens)
    constraint = await constrained(context, model, body)
    if use is not None:
        from kdn.serve.openai.tool_chat import ToolChat, required_calls

        constraint = await required_calls(context, model, use, constraint)
    sampling = sampling_of(body, model, room, _logprobs(body), constraint)
    techniques: tuple[object, ...] = ()
    if body.kdn is not None:
        techniques = await context.in_thread(
            chat_techniques, body.kdn, model, prompt, messages, documents, job.adapter
        )
    asked_for = requests_of(context, job, body, [(prompt, sampling)], body.n or 1, techniques)
    streams = context.submit_all(job, asked_for)
    if use is None:
        return Chat(job, body, model.vocabulary, streams, [prompt])
    return ToolChat(job, body, model.vocabulary, streams, [prompt], use)


async def constrained(
    context: RequestContext, model: ServedModel, body: SamplingBody
) -> Constraint | None:
    """What the answers must be, compiled. Raises Refused for what cannot be honoured."""
    if not body.model_fields_set & ConstrainedBody.model_fields.keys():
        return None
    asked = await context.in_thread(constraint_of, body)  # a schema may be megabytes
    if asked is None:
        return None
    param, constraint = asked
    await context.compiled(model, constraint, param)
    return constraint


def sampling_of(
    body: SamplingBody,
    model: ServedModel,
    max_tokens: int,
    logprobs: int | None,
    constraint: Constraint | None,
) -> Sampling:
    """The model's own sampling where the body says nothing."""
    own = model.sampling
    stop_ids = tuple(body.stop_token_ids or ())
    check_ids(stop_ids, model.vocabulary.vocab_size, "stop_token_ids")
    return Sampling(
        max_tokens=max_tokens,
        temperature=own.temperature if body.temperature is None else body.temperature,
        top_p=own.top_p if body.top_p is None else body.top_p,
        top_k=own.top_k if body.top_k is None else max(body.top_k, 0),  # vLLM's clients say -1
        min_p=own.min_p if body.min_p is None else body.min_p,
        seed=body.seed,
        stop=_stops(body.stop),
        stop_token_ids=stop_ids,
        ignore_eos=bool(body.ignore_eos),
        logit_bias=biases_of(body.logit_bias or {}, model.vocabulary.vocab_size),
        logprobs=logprobs,
        constraint=constraint,
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        min_tokens=body.min_tokens or 0,
        include_stop=bool(body.include_stop_str_in_output),
        show_special=body.skip_special_tokens is False,
        prompt_logprobs=body.prompt_logprobs,
    )


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if "" in stops:
        raise Refused("a stop string is empty and would end every answer", param="stop")
    return stops


def requests_of(
    context: RequestContext,
    job: HttpJob,
    body: SamplingBody,
    prompts: Sequence[tuple[Prompt, Sampling]],
    choices: int,
    techniques: tuple[object, ...],
) -> list[Request]:
    """`choices` requests a prompt, prompts in order."""
    options = body.kdn or KdnOptions()
    check_choices(context, len(prompts) * choices)
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


def check_choices(context: RequestContext, asked: int) -> None:
    """Raise Refused for more answers than one request may ask for."""
    most = context.settings.limits.choices
    if asked > most:
        raise Refused(f"{asked} answers are asked for; a request may ask for {most}", param="n")


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


class Chat(Answers):
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

    def tell_prompts(self, whole: Any, answers: list[GatheredAnswer]) -> None:
        if self.body.prompt_logprobs is not None:
            whole.prompt_logprobs = prompt_logprobs(answers[0].ended.prompt)

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
        yield self.last(index, finish, finish_name(finish.reason))

    def last(self, index: int, finish: Finish, name: str) -> ChatChunk:
        """The event that says why an answer ended."""
        last: ChatChunk = self.chunk([ChunkChoice(index, ChatDelta(), name)], streamed=True)
        if index == 0:
            last.kdn = kdn_report([finish.usage])
        return last

    def _logprobs(self, tokens: Sequence[Token]) -> Any:
        return chat_logprobs(tokens, self.vocabulary) if self.logprobs_wanted else None
