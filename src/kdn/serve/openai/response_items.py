"""The body of POST /v1/responses, and the same request as a chat."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdn.serve.errors import Fault, Refused, fault_of_shape
from kdn.serve.limits import MAX_DOCUMENTS, MAX_MESSAGES, Count, Text
from kdn.serve.openai.requests import ChatBody, DocumentBody, JobBody, KdnOptions

__all__ = ["ResponsesBody", "ResponsesRequest"]

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
    documents: list[DocumentBody | Text] | None = Field(None, max_length=MAX_DOCUMENTS)
    """As for a chat."""
    kdn: KdnOptions | None = None
    """As for a chat; the answer tells in its `kdn` what was reused."""
    truncation: Literal["disabled"] | None = None
    """Only `disabled`."""
    previous_response_id: None = None
    """Answers are not kept: send the conversation."""
    background: Literal[False] | None = None
    """Only false."""


@dataclass
class _Place:
    """Where a message came from, and each of its calls."""

    name: str
    calls: list[str] = field(default_factory=list)


class ResponsesRequest:
    """A body as a chat, with what is wrong named as the body names it."""

    def __init__(self, body: ResponsesBody) -> None:
        self._body = body
        self._messages: list[_Shape] = []
        self._places: list[_Place] = []
        """One for each message."""

    def chat(self) -> ChatBody:
        """The same request. Raises Refused, naming the parameter or the item at fault."""
        body = self._body
        if body.instructions is not None:
            self._add("instructions", {"role": "system", "content": body.instructions})
        if isinstance(body.input, str):
            self._add("input", {"role": "user", "content": body.input})
        else:
            for number, item in enumerate(body.input):
                self._add_item(item, f"input[{number}]")
        given: _Shape = {
            "messages": self._messages,
            "max_tokens": body.max_output_tokens,
            "tools": [_tool(one, i) for i, one in enumerate(body.tools)] if body.tools else None,
            "tool_choice": _choice(body.tool_choice),
            "parallel_tool_calls": body.parallel_tool_calls,
            "reasoning_effort": body.reasoning.effort if body.reasoning else None,
            "response_format": _format(body.text.format if body.text else None),
        }
        for name in _ALIKE:
            given[name] = getattr(body, name)
        try:
            return ChatBody.model_validate({k: v for k, v in given.items() if v is not None})
        except ValidationError as error:
            located = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
            raise Refused.of(self._renamed(fault_of_shape(located))) from error

    @contextmanager
    def naming(self) -> Iterator[None]:
        """What is refused inside as a chat is refused with this API's names."""
        try:
            yield
        except Refused as refused:
            raise Refused.of(self._renamed(refused.fault)) from refused

    def _add(self, place: str, message: _Shape) -> None:
        self._messages.append(message)
        self._places.append(_Place(place))

    def _add_item(self, item: _Shape, where: str) -> None:
        kind = item.get("type", "message")
        if kind == "message":
            content = _content(item.get("content"), where)
            self._add(where, {"role": item.get("role"), "content": content})
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            if not (self._messages and self._messages[-1]["role"] == "assistant"):
                self._add(where, {"role": "assistant"})
            calls = self._messages[-1].setdefault("tool_calls", [])
            calls.append({"id": item.get("call_id"), "type": "function", "function": function})
            self._places[-1].calls.append(where)
        elif kind == "function_call_output":
            result = _content(item.get("output"), where)
            call_id = item.get("call_id")
            self._add(where, {"role": "tool", "tool_call_id": call_id, "content": result})
        else:
            raise Refused(
                f"{where} is a {kind!r:.60}, which kdn does not take", param=f"{where}.type"
            )

    def _renamed(self, fault: Fault) -> Fault:
        if fault.param is None:
            return fault
        name = self._name(fault.param)
        pattern = rf"(?<![\w.]){re.escape(fault.param)}(?!\w)"
        return replace(fault, param=name, message=re.sub(pattern, lambda _: name, fault.message))

    def _name(self, param: str) -> str:
        """What this API calls a chat's parameter."""
        found = _MESSAGE.fullmatch(param)
        if found is not None and int(found["number"]) < len(self._places):
            place = self._places[int(found["number"])]
            if found["call"] is None:
                is_result = self._messages[int(found["number"])]["role"] == "tool"
                rest = found["rest"].replace(".content", ".output") if is_result else found["rest"]
                rest = rest.replace(".tool_call_id", ".call_id")
                return place.name if place.name in _WHOLE else place.name + rest
            own = found["rest"].replace(".id", ".call_id").replace(".function", "")
            return place.calls[int(found["call"])] + own
        for old, new in _NAMES.items():
            if param == old or param.startswith((f"{old}.", f"{old}[")):
                return new + param[len(old) :]
        return re.sub(r"^(tools\[\d+\]|tool_choice)\.function", r"\1", param)


_ALIKE = ("model", "cache_salt", "priority", "temperature", "top_p", "stream", "documents", "kdn")
"""Parameters that mean in a chat what they mean here."""
_WHOLE = ("instructions", "input")
"""Texts, of which no part has a name."""
_MESSAGE = re.compile(r"messages\[(?P<number>\d+)\](\.tool_calls\[(?P<call>\d+)\])?(?P<rest>.*)")
_NAMES: Mapping[str, str] = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}
"""Where the two APIs differ, the longer names first."""


def _content(content: object, where: str) -> object:
    """A text as it is; of parts, those that are texts."""
    if not isinstance(content, list):
        return content
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("input_text", "output_text", "text"):
            raise Refused(f"{where} holds a {kind!r:.60}; kdn takes text", param=f"{where}.content")
        own = {"kdn": part["kdn"]} if "kdn" in part else {}
        parts.append({"type": "text", "text": part.get("text"), **own})
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
