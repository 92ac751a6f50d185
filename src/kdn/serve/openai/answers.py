"""Answers under way in the shape that OpenAI's clients read: gathered, or a stream of events."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import Request as HttpRequest
from starlette.responses import Response

from kdn.core import Finish, Prompt, StreamEvent, Token, Usage
from kdn.serve.openai.requests import KdnOptions
from kdn.serve.openai.responses import (
    KdnReport,
    UsageReport,
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
from kdn.serve.service import Vocabulary

if TYPE_CHECKING:
    from kdn.serve.openai.context import HttpJob

__all__ = ["Answers"]


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
        whole = await self._made(self._choices, shown)
        drawn = [token.token_id for token in answers[0].tokens]
        whole = await self._account(whole, [answer.ended.usage for answer in answers], drawn)
        await self._made(self.tell_prompts, whole, shown)
        served, adapter = self.job.served, self.job.bound_adapter()
        whole.system_fingerprint = served.weights_with(adapter) if adapter else served.weights
        return json_response(whole)

    @property
    def tells_prompts(self) -> bool:
        """Are the probabilities of the prompts' own tokens asked for?"""
        return self.body.prompt_logprobs is not None

    async def _made(self, make: Callable[..., Any], *arguments: Any) -> Any:
        """What `make` returns; beside the event loop where prompts are told, which may take seconds."""
        if self.tells_prompts:
            return await self.job.tell(make, *arguments)
        return make(*arguments)

    def _choices(self, answers: list[GatheredAnswer]) -> Any:
        return self.chunk([self.choice(index, one) for index, one in enumerate(answers)])

    def shown(self, answers: list[GatheredAnswer]) -> list[GatheredAnswer]:
        """Those that are given out, in order."""
        return answers

    @abstractmethod
    def tell_prompts(self, whole: Any, answers: list[GatheredAnswer]) -> None:
        """Add what was asked for of the prompts' own tokens."""

    async def _events(self) -> AsyncIterator[bytes]:
        """Server-sent events, those that come together in one piece; an error after the start is told by
        the last event but [DONE]."""
        so_far: dict[int, GatheredAnswer] = {}
        last: list[bytes] = []
        try:
            running = self.streams.is_running
            while running:
                arrived = await self.streams.arrived()
                last = [one for pair in arrived for one in self._told(so_far, *pair)]
                running = self.streams.is_running
                if running and last:
                    yield b"".join(last)
                    last = []
            options = self.body.stream_options
            if self._wants_more or (options and options.include_usage):
                ended = [so_far[index].ended.usage for index in sorted(so_far)]
                drawn = [token.token_id for token in so_far[0].tokens]
                last.append(event(await self._account(self.chunk([], streamed=True), ended, drawn)))
        except Exception as error:  # noqa: BLE001 - the headers are sent: the error must travel as an event
            last.append(failure(error))
        yield b"".join((*last, DONE))

    def _told(
        self, so_far: dict[int, GatheredAnswer], index: int, item: StreamEvent
    ) -> Iterator[bytes]:
        """The events that one of the engine's becomes; it is added to what has come so far."""
        if index not in so_far:
            so_far[index] = GatheredAnswer()
            for choice in self.opening(index):
                yield event(self._so_far(self.chunk([choice], streamed=True), index, 0))
        answer = so_far[index]
        offset = answer.num_characters
        answer.add(item)
        if isinstance(item, Finish):
            for shape in self.ending(index, item):
                yield event(self._so_far(shape, index, item.usage.completion_tokens))
            return
        for choice in self.deltas(index, item, offset):
            shape = self.chunk([choice], streamed=True)
            yield event(self._so_far(shape, index, len(answer.tokens)))

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
        """What kdn did for the prompts, and what was asked for beside it: `drawn` is the first answer.

        For answers that have ended: their streams may be closed.
        """
        report, asked = kdn_report(prompts), self.body.kdn or KdnOptions()
        if asked.why:
            report.why = await self.job.explain(self.job.id)
        if asked.steer_report:
            self.streams.close()  # what compares them counts in place of the answers
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
