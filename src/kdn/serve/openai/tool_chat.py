"""A chat whose answers may call tools, whole and streamed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from kdn.core import Constraint, Finish, FinishReason, Token
from kdn.errors import MissingExtra
from kdn.model import CallReader, ToolCall
from kdn.serve.errors import Refused
from kdn.serve.openai.chat import Chat
from kdn.serve.openai.context import RequestContext
from kdn.serve.openai.responses import (
    CalledTool,
    ChatChoice,
    ChatChunk,
    ChatDelta,
    ChatMessage,
    ChunkChoice,
    FunctionCall,
    finish_name,
)
from kdn.serve.openai.streams import GatheredAnswer
from kdn.serve.openai.tools import ToolUse
from kdn.serve.service import ServedModel

__all__ = ["ToolChat", "required_calls"]


async def required_calls(
    context: RequestContext, model: ServedModel, use: ToolUse, constraint: Constraint | None
) -> Constraint | None:
    """The constraint of calls that are required.

    Raises Refused for schemas that cannot be honoured; where no call is required, for those that are none.
    """
    if constraint is not None:
        raise Refused(
            "an answer that may call tools cannot be constrained too; send tool_choice none, or leave "
            "the constraint out",
            param="tool_choice",
        )
    if not use.is_required:
        with suppress(MissingExtra):
            await _compile_each(context, model, use)
        return None
    calls = await context.in_thread(lambda: use.calls)
    try:
        await context.compiled(model, calls, "tools")
    except Refused:
        await _compile_each(context, model, use)
        raise
    return calls


async def _compile_each(context: RequestContext, model: ServedModel, use: ToolUse) -> None:
    """Raises Refused for the first tool whose schema is at fault, by its place."""
    for param, schema in await context.in_thread(lambda: list(use.schemas())):
        await context.compiled(model, schema, param)


@dataclass
class _Reading:
    """How far one streamed answer is read."""

    reader: CallReader
    num_calls: int = 0


@dataclass(frozen=True)
class ToolChat(Chat):
    """As `Chat`, with the calls in an answer told apart from its text."""

    use: ToolUse
    _readings: dict[int, _Reading] = field(default_factory=dict)

    def choice(self, index: int, answer: GatheredAnswer) -> ChatChoice:
        reader = self.use.format.reader(self.use.tools)
        is_cut = answer.ended.reason is FinishReason.LENGTH
        found = [*reader.push(answer.text), *reader.finish(is_cut=is_cut)]
        calls = [one for one in found if isinstance(one, ToolCall)]
        calls = calls if self.use.parallel else calls[:1]
        text = "".join(one for one in found if isinstance(one, str) and not self.use.is_required)
        message = ChatMessage(text or (None if calls or self.use.is_required else ""))
        if calls:
            message.tool_calls = [self._called(index, i, one) for i, one in enumerate(calls)]
        finish = self._finish(answer.ended, has_calls=bool(calls))
        return ChatChoice(index, message, finish, self._logprobs(answer.tokens))

    def deltas(self, index: int, token: Token, offset: int) -> Iterator[ChunkChoice]:
        found = list(self._read(index, self._reading(index).reader.push(token.text)))
        logprobs = self._logprobs([token])
        if not found and logprobs is not None:
            found = [ChatDelta()]
        for number, delta in enumerate(found):
            yield ChunkChoice(index, delta, logprobs=logprobs if number == 0 else None)

    def ending(self, index: int, finish: Finish) -> Iterator[ChatChunk]:
        reading = self._reading(index)
        is_cut = finish.reason is FinishReason.LENGTH
        rest = [*reading.reader.push(finish.tail), *reading.reader.finish(is_cut=is_cut)]
        for delta in self._read(index, rest):
            yield self.chunk([ChunkChoice(index, delta)], streamed=True)
        name = self._finish(finish, has_calls=reading.num_calls > 0)
        yield self.last(index, finish, name)

    def _reading(self, index: int) -> _Reading:
        return self._readings.setdefault(index, _Reading(self.use.format.reader(self.use.tools)))

    def _read(self, index: int, found: list[str | ToolCall]) -> Iterator[ChatDelta]:
        """A delta for each text and for each call. Where calls are required there is no text: what looks
        like it was cut off from a call."""
        reading = self._reading(index)
        for one in found:
            if isinstance(one, str):
                if not self.use.is_required:
                    yield ChatDelta(content=one)
            elif self.use.parallel or not reading.num_calls:
                yield ChatDelta(tool_calls=[self._called(index, reading.num_calls, one)])
                reading.num_calls += 1

    def _called(self, index: int, number: int, call: ToolCall) -> CalledTool:
        name = f"call-{self.job.id.partition('-')[2]}-{index}-{number}"
        return CalledTool(number, name, FunctionCall(call.name, call.arguments))

    def _finish(self, finish: Finish, *, has_calls: bool) -> Any:
        """`tool_calls` after calls of the model's own choice, as OpenAI says it."""
        called = has_calls and finish.reason is FinishReason.STOP and not self.use.is_named
        return "tool_calls" if called else finish_name(finish.reason)
