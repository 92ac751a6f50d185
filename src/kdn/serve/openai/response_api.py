"""POST /v1/responses: a chat in the newer shape of OpenAI's API, whole and streamed. Nothing is kept."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from kdn.core import Finish, FinishReason, Usage
from kdn.model import is_object
from kdn.serve.errors import Fault, fault_of
from kdn.serve.limits import bounded_router, check_unicode
from kdn.serve.openai.chat import Chat, begin_chat
from kdn.serve.openai.context import RequestContext, refuse_unsupported
from kdn.serve.openai.response_items import ResponsesBody, ResponsesRequest
from kdn.serve.openai.responses import CalledTool, json_response
from kdn.serve.openai.streams import EventStream, gather, one_line, until_disconnect

__all__ = ["response_routes"]

_Shape = dict[str, Any]


def response_routes(context: RequestContext) -> APIRouter:
    """The route, bound to one server's parts."""
    router = bounded_router()

    @router.post("/v1/responses")
    async def respond(body: ResponsesBody, http: HttpRequest) -> Response:
        refuse_unsupported(body.model_extra)
        for name in ("input", "tools", "tool_choice", "text"):
            check_unicode(body.model_dump(include={name}), name)
        asked = ResponsesRequest(body)
        with asked.naming():
            chat = await begin_chat(context, asked.chat(), http)
        told = _Told(body, chat)
        if body.stream:
            return EventStream(told.events(), chat.streams)
        (answer,) = await until_disconnect(http, chat.streams, gather(chat.streams, 1))
        message = chat.choice(0, answer).message
        if message.content:
            told.add_text(message.content)
        for call in message.tool_calls or ():
            told.add_call(call)
        drawn = [token.token_id for token in answer.tokens]
        return json_response(await told.ended(answer.ended, drawn))

    return router


# --- from a chat to an answer ----------------------------------------------------------------


@dataclass
class _Told:
    """One answer as it is put together, and the events that tell of it."""

    body: ResponsesBody
    chat: Chat
    output: list[_Shape] = field(default_factory=list)
    number: int = 0
    """Of the next event."""
    text: str | None = None
    """Of the message that is open."""

    def add_text(self, text: str) -> _Shape:
        """A whole message."""
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
        item = self._message("completed", [part])
        self.output.append(item)
        return item

    def add_call(self, call: CalledTool) -> _Shape:
        """A call: whole, or cut off at the most tokens that the answer may have."""
        item = {
            "type": "function_call",
            "id": f"fc_{self._name}_{len(self.output)}",
            "call_id": call.id,
            "name": call.function.name,
            "arguments": call.function.arguments,
            "status": "completed" if is_object(call.function.arguments) else "incomplete",
        }
        self.output.append(item)
        return item

    async def ended(self, finish: Finish, drawn: list[int]) -> _Shape:
        """The answer at its end; `drawn` are its tokens."""
        is_cut = finish.reason is FinishReason.LENGTH
        found = self._response("incomplete" if is_cut else "completed", finish.usage)
        if is_cut:
            found["incomplete_details"] = {"reason": "max_output_tokens"}
        found["kdn"] = await self.chat.report([finish.usage], drawn)
        return found

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events; an error after the start is told by the last one."""
        yield self._event("response.created", response=self._response("in_progress"))
        yield self._event("response.in_progress", response=self._response("in_progress"))
        drawn: list[int] = []
        try:
            async for _, item in self.chat.streams.events():
                if not isinstance(item, Finish):
                    drawn.append(item.token_id)
                    for one in self.chat.deltas(0, item, 0):
                        for event in self._delta(one.delta):
                            yield event
                    continue
                for chunk in self.chat.ending(0, item):
                    for event in self._delta(chunk.choices[0].delta):
                        yield event
                for event in self._close_text():
                    yield event
                whole = await self.ended(item, drawn)
                yield self._event(f"response.{whole['status']}", response=whole)
        except Exception as error:  # noqa: BLE001  the headers are sent: the error must travel as an event
            fault: Fault = fault_of(error)
            failed = self._response("failed")
            failed["error"] = {"code": _error_code(fault), "message": fault.message}
            yield self._event("response.failed", response=failed)

    def _delta(self, delta: Any) -> Iterator[bytes]:
        if delta.content:
            if self.text is None:
                yield from self._open_text()
            self.text = (self.text or "") + delta.content
            yield self._event(
                "response.output_text.delta", **self._place, delta=delta.content, logprobs=[]
            )
        for call in delta.tool_calls or ():
            yield from self._close_text()
            at = len(self.output)
            item = self.add_call(call)
            begun = {**item, "arguments": "", "status": "in_progress"}
            where = {"item_id": item["id"], "output_index": at}
            yield self._event("response.output_item.added", output_index=at, item=begun)
            for name, key in (("delta", "delta"), ("done", "arguments")):
                told = {
                    key: item["arguments"],
                    **({"name": item["name"]} if key != "delta" else {}),
                }
                yield self._event(f"response.function_call_arguments.{name}", **where, **told)
            yield self._event("response.output_item.done", output_index=at, item=item)

    def _open_text(self) -> Iterator[bytes]:
        item, part = self._message("in_progress", []), {"type": "output_text", "text": ""}
        at = len(self.output)
        yield self._event("response.output_item.added", output_index=at, item=item)
        yield self._event(
            "response.content_part.added", **self._place, part={**part, "annotations": []}
        )

    def _close_text(self) -> Iterator[bytes]:
        text, self.text = self.text, None
        if text is None:
            return
        place = self._place
        item = self.add_text(text)
        yield self._event("response.output_text.done", **place, text=text, logprobs=[])
        yield self._event("response.content_part.done", **place, part=item["content"][0])
        at = place["output_index"]
        yield self._event("response.output_item.done", output_index=at, item=item)

    @property
    def _name(self) -> str:
        return self.chat.job.id.partition("-")[2]

    @property
    def _place(self) -> _Shape:
        at = len(self.output)
        return {"item_id": f"msg_{self._name}_{at}", "output_index": at, "content_index": 0}

    def _message(self, status: str, content: list[_Shape]) -> _Shape:
        own = {"type": "message", "id": self._place["item_id"], "role": "assistant"}
        return {**own, "status": status, "content": content}

    def _response(self, status: str, usage: Usage | None = None) -> _Shape:
        body, job = self.body, self.chat.job
        return {
            "id": f"resp_{self._name}",
            "object": "response",
            "created_at": job.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": job.model,
            "output": list(self.output),
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": body.temperature,
            "text": {"format": (body.text and body.text.format) or {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": _usage(usage) if usage is not None else None,
            "metadata": {},
        }

    def _event(self, kind: str, **told: Any) -> bytes:
        shape = {"type": kind, "sequence_number": self.number, **told}
        self.number += 1
        return (
            b"event: "
            + kind.encode()
            + b"\ndata: "
            + one_line(msgspec.json.encode(shape))
            + b"\n\n"
        )


def _usage(usage: Usage) -> _Shape:
    total = usage.prompt_tokens + usage.completion_tokens
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": total,
    }


def _error_code(fault: Fault) -> str:
    """Of OpenAI's codes for a response that failed."""
    if fault.status == 429:
        return "rate_limit_exceeded"
    return "invalid_prompt" if fault.status < 500 else "server_error"
