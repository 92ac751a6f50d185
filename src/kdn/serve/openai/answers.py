"""Answers under way, in whatever shape they are worded: how they are asked for, gathered and streamed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import Request as HttpRequest
from fastapi import Response

from kdn.core import (
    Constraint,
    Finish,
    Prompt,
    Request,
    Retention,
    Sampling,
    Token,
    Usage,
)
from kdn.serve.errors import Refused
from kdn.serve.limits import MAX_SEED
from kdn.serve.openai.context import (
    HttpJob,
    RequestContext,
    biases_of,
)
from kdn.serve.openai.requests import KdnOptions, SamplingBody
from kdn.serve.openai.responses import (
    KdnReport,
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
from kdn.serve.openai.structured import ConstrainedBody, constraint_of
from kdn.serve.service import ServedModel, Vocabulary

__all__ = ["Answers", "constrained", "requests_of", "sampling_of"]


async def constrained(
    context: RequestContext, model: ServedModel, body: SamplingBody
) -> Constraint | None:
    """What the answers must be, compiled. Raises Refused for what cannot be honoured."""
    if not body.model_fields_set & ConstrainedBody.model_fields.keys():
        return None
    asked = constraint_of(body)
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
    return Sampling(
        max_tokens=max_tokens,
        temperature=own.temperature if body.temperature is None else body.temperature,
        top_p=own.top_p if body.top_p is None else body.top_p,
        top_k=own.top_k if body.top_k is None else max(body.top_k, 0),  # vLLM's clients say -1
        min_p=own.min_p if body.min_p is None else body.min_p,
        seed=body.seed,
        stop=_stops(body.stop),
        stop_token_ids=tuple(body.stop_token_ids or ()),
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
    options, most = body.kdn or KdnOptions(), context.settings.limits.choices
    if len(prompts) * choices > most:
        raise Refused(
            f"{len(prompts) * choices} answers are asked for; a request may ask for {most}",
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
                        yield event(self.chunk([choice], streamed=True))
                if isinstance(item, Finish):
                    usages[index] = item.usage
                    for shape in self.ending(index, item):
                        yield event(shape)
                    continue
                drawn.setdefault(index, []).append(item.token_id)
                for choice in self.deltas(index, item, written[index]):
                    yield event(self.chunk([choice], streamed=True))
                written[index] += len(item.text)
        except Exception as error:  # noqa: BLE001 - the headers are sent: the error must travel as an event
            yield failure(error)
        else:
            options = self.body.stream_options
            if self._wants_more or (options and options.include_usage):
                ended = [usages[index] for index in sorted(usages)]
                yield event(await self._account(self.chunk([], streamed=True), ended, drawn[0]))
        yield DONE

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
