"""POST /v1/responses: a chat in the newer shape of OpenAI's API, whole and streamed. Nothing is kept."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdn.core import Finish, FinishReason, Usage
from kdn.serve.errors import Fault, Refused, fault_of
from kdn.serve.limits import MAX_MESSAGES, Count, Text, bounded_router, check_unicode
from kdn.serve.openai.context import RequestContext, refuse_unsupported
from kdn.serve.openai.generate import Chat, begin_chat
from kdn.serve.openai.requests import ChatBody, JobBody
from kdn.serve.openai.responses import CalledTool, json_response
from kdn.serve.openai.streams import EventStream, gather, until_disconnect

__all__ = ["ResponsesBody", "response_routes"]

_Shape = dict[str, Any]


class ReasoningBody(BaseModel):
    """How much a model thinks, for templates that read it."""

    model_config = ConfigDict(extra="forbid", strict=True)
    effort: Text | None = None
    summary: None = None


class TextBody(BaseModel):
    """The form of the text."""

    model_config = ConfigDict(extra="forbid", strict=True)
    format: dict[str, Any] | None = None


class ResponsesBody(JobBody):
    input: Text | Annotated[list[dict[str, Any]], Field(max_length=MAX_MESSAGES)]
    """A text, or messages, calls (`function_call`) and their results (`function_call_output`)."""
    instructions: Text | None = None
    """A system text in front."""
    max_output_tokens: Count | None = None
    """As `max_tokens` of a chat."""
    temperature: float | None = Field(None, ge=0, le=2)
    """As for a chat."""
    top_p: float | None = Field(None, gt=0, le=1)
    """As for a chat."""
    text: TextBody | None = None
    """`{"format": ...}`: `text`, `json_object`, or `json_schema` with its `schema`."""
    tools: list[dict[str, Any]] | None = None
    """Functions: `{"type": "function", "name", "description", "parameters"}`."""
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    """As for a chat; a named function is `{"type": "function", "name": ...}`."""
    parallel_tool_calls: bool | None = None
    """False: one call at most."""
    reasoning: ReasoningBody | None = None
    """`effort`, as `reasoning_effort` of a chat."""
    stream: bool | None = None
    """Server-sent events in place of one body."""
    truncation: Literal["disabled"] | None = None
    """Only `disabled`."""
    previous_response_id: None = None
    """Answers are not kept: send the conversation."""
    background: Literal[False] | None = None
    """Only false."""


def response_routes(context: RequestContext) -> APIRouter:
    """The route, bound to one server's parts."""
    router = bounded_router()

    @router.post("/v1/responses")
    async def respond(body: ResponsesBody, http: HttpRequest) -> Response:
        refuse_unsupported(body.model_extra)
        for name in ("input", "tools", "tool_choice", "text"):
            check_unicode(body.model_dump(include={name}), name)
        chat = await begin_chat(context, _as_chat(body), http)
        told = _Told(body, chat)
        if body.stream:
            return EventStream(told.events(), chat.streams)
        (answer,) = await until_disconnect(http, chat.streams, gather(chat.streams, 1))
        message = chat.choice(0, answer).message
        if message.content:
            told.add_text(message.content)
        for call in message.tool_calls or ():
            told.add_call(call)
        return json_response(told.ended(answer.ended))

    return router


# --- from a body to a chat -------------------------------------------------------------------


def _as_chat(body: ResponsesBody) -> ChatBody:
    """The same request as a chat. Raises Refused, naming the item at fault."""
    messages: list[_Shape] = []
    if body.instructions is not None:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        messages.append({"role": "user", "content": body.input})
    else:
        for number, item in enumerate(body.input):
            _add_item(messages, item, f"input[{number}]")
    given: _Shape = {
        "messages": messages,
        "max_tokens": body.max_output_tokens,
        "tools": [_tool(one, i) for i, one in enumerate(body.tools)] if body.tools else None,
        "tool_choice": _choice(body.tool_choice),
        "parallel_tool_calls": body.parallel_tool_calls,
        "reasoning_effort": body.reasoning.effort if body.reasoning else None,
        "response_format": _format(body.text.format if body.text else None),
    }
    for name in ("model", "cache_salt", "priority", "temperature", "top_p", "stream"):
        given[name] = getattr(body, name)
    try:
        return ChatBody.model_validate({k: v for k, v in given.items() if v is not None})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Refused(f"{where}: {first['msg']}", param=where, code="invalid_value") from error


def _add_item(messages: list[_Shape], item: _Shape, where: str) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        messages.append({"role": item.get("role"), "content": _content(item.get("content"), where)})
    elif kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        if messages and messages[-1]["role"] == "assistant":
            messages[-1].setdefault("tool_calls", []).append(call)
        else:
            messages.append({"role": "assistant", "tool_calls": [call]})
    elif kind == "function_call_output":
        result = _content(item.get("output"), where)
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": result})
    else:
        raise Refused(f"{where} is a {kind!r:.60}, which kdn does not take", param=f"{where}.type")


def _content(content: object, where: str) -> object:
    """A text as it is; of parts, those that are texts."""
    if not isinstance(content, list):
        return content
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("input_text", "output_text", "text"):
            raise Refused(f"{where} holds a {kind!r:.60}; kdn takes text", param=f"{where}.content")
        parts.append({"type": "text", "text": part.get("text")})
    return parts


def _tool(tool: _Shape, number: int) -> _Shape:
    if tool.get("type") != "function":
        raise Refused(
            f"a tool of type {tool.get('type')!r:.60} is not run here; give functions",
            param=f"tools[{number}].type",
        )
    function = {name: value for name, value in tool.items() if name != "type" and value is not None}
    return {"type": "function", "function": function}


def _choice(choice: object) -> object:
    if isinstance(choice, dict) and "name" in choice:
        return {"type": choice.get("type"), "function": {"name": choice["name"]}}
    return choice


def _format(form: _Shape | None) -> _Shape | None:
    """The form of the answer in the way of a chat."""
    if form is None or form.get("type") != "json_schema":
        return form
    schema = {name: value for name, value in form.items() if name != "type" and value is not None}
    return {"type": "json_schema", "json_schema": schema}


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
        """A whole call."""
        item = {
            "type": "function_call",
            "id": f"fc_{self._name}_{len(self.output)}",
            "call_id": call.id,
            "name": call.function.name,
            "arguments": call.function.arguments,
            "status": "completed",
        }
        self.output.append(item)
        return item

    def ended(self, finish: Finish) -> _Shape:
        """The answer at its end."""
        is_cut = finish.reason is FinishReason.LENGTH
        found = self._response("incomplete" if is_cut else "completed", finish.usage)
        if is_cut:
            found["incomplete_details"] = {"reason": "max_output_tokens"}
        return found

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events; an error after the start is told by the last one."""
        yield self._event("response.created", response=self._response("in_progress"))
        yield self._event("response.in_progress", response=self._response("in_progress"))
        try:
            async for _, item in self.chat.streams.events():
                if not isinstance(item, Finish):
                    for one in self.chat.deltas(0, item, 0):
                        for event in self._delta(one.delta):
                            yield event
                    continue
                for chunk in self.chat.ending(0, item):
                    for event in self._delta(chunk.choices[0].delta):
                        yield event
                for event in self._close_text():
                    yield event
                whole = self.ended(item)
                yield self._event(f"response.{whole['status']}", response=whole)
        except Exception as error:  # noqa: BLE001  the headers are sent: the error must travel as an event
            fault: Fault = fault_of(error)
            failed = self._response("failed")
            failed["error"] = {"code": "server_error", "message": fault.message}
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
        return b"event: " + kind.encode() + b"\ndata: " + msgspec.json.encode(shape) + b"\n\n"


def _usage(usage: Usage) -> _Shape:
    total = usage.prompt_tokens + usage.completion_tokens
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": total,
    }
