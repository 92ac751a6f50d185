"""Tools that an answer may call, and what else the chat template is told."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kdn.core import Constraint
from kdn.errors import BadInput
from kdn.model import ChatOptions, Message, Tool, ToolCall, ToolFormat, is_object
from kdn.serve.errors import Refused
from kdn.serve.limits import Name, Text, check_length, check_unicode
from kdn.serve.service import PromptMaker, ServedModel

__all__ = [
    "CalledFunction",
    "FunctionBody",
    "NamedChoice",
    "TemplateBody",
    "ToolBody",
    "ToolCallBody",
    "ToolUse",
    "called_turn",
    "with_template",
]

_MAX_TOOLS = 128
_STRICT = ConfigDict(
    extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
)
_FUNCTION_NAME = r"^[a-zA-Z0-9_.-]{1,64}$"
_OURS = frozenset({"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"})
"""Variables of templates that have parameters of their own, or none."""


class FunctionBody(BaseModel):
    """A function that may be called."""

    model_config = _STRICT
    name: Annotated[str, Field(pattern=_FUNCTION_NAME)]
    """How the model calls it."""
    description: Text | None = None
    """What it is for."""
    parameters: dict[str, Any] | None = None
    """A JSON schema of its arguments."""
    strict: bool | None = None
    """Not needed: where a call is required, its arguments keep to the schema."""


class ToolBody(BaseModel):
    """A tool; functions are all there are."""

    model_config = _STRICT
    type: Literal["function"]
    """`function`"""
    function: FunctionBody
    """The function."""


class _Named(BaseModel):
    model_config = _STRICT
    name: Name


class NamedChoice(BaseModel):
    """The one function that must be called."""

    model_config = _STRICT
    type: Literal["function"]
    function: _Named


class CalledFunction(BaseModel):
    """What an answer called."""

    model_config = _STRICT
    name: Name
    arguments: Text
    """The text of a JSON object."""


class ToolCallBody(BaseModel):
    """One call of an earlier answer."""

    model_config = ConfigDict(extra="ignore", strict=True)
    id: Name | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class TemplateBody(BaseModel):
    """What the chat template is told beside the messages."""

    tools: list[ToolBody] | None = Field(None, max_length=_MAX_TOOLS)
    """Functions that the answer may call. A template that shows no tools is given them as system text."""
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    """`auto`, the default with tools; `none` leaves them out; `required`, or a named function: the answer is
    calls, whose arguments keep to their schemas."""
    parallel_tool_calls: bool | None = None
    """False: one call at most."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables of the template, such as `enable_thinking`; ones that it does not read are refused."""
    reasoning_effort: Name | None = None
    """For templates that read it; `none` also turns `enable_thinking` off."""
    continue_final_message: bool | None = None
    """The answer goes on with the last message, which is the assistant's."""
    add_generation_prompt: bool | None = None
    """False only with `continue_final_message`."""


@dataclass(frozen=True)
class ToolUse:
    """The tools of one chat, and how its model calls them."""

    format: ToolFormat
    tools: tuple[Tool, ...]
    places: tuple[int, ...]
    """Of these tools, among those of the request."""
    is_required: bool
    is_named: bool
    parallel: bool

    @property
    def calls(self) -> Constraint:
        """An answer of calls and nothing else. Raises Refused."""
        try:
            return Constraint.grammar(self.format.grammar(self.tools, parallel=self.parallel))
        except BadInput as error:
            raise Refused(
                f"the schemas of the tools are too long: {error}", param="tools"
            ) from error

    def schemas(self) -> Iterator[tuple[str, Constraint]]:
        """What the arguments of each tool are, by the parameter that says it.

        Where no call is required they are not held to it: keywords that cannot be honoured, as tools of
        others have them, are passed over then.
        """
        for place, tool in zip(self.places, self.tools, strict=True):
            schema: dict[str, Any] = {"type": "object", **(tool.parameters or {})}
            passed_over = json.dumps(schema | {"x-guidance": {"lenient": True}})
            yield (
                f"tools[{place}].function.parameters",
                Constraint.json_schema(schema)
                if self.is_required
                else Constraint.grammar(f"start: %json {passed_over}"),
            )


def with_template(
    body: TemplateBody, messages: list[Message], model: ServedModel
) -> tuple[list[Message], ChatOptions, ToolUse | None]:
    """The messages as they are rendered, the template's options, and the tools in use.

    Tokenises the tools: call it beside the event loop. Raises Refused for what the template or the
    model cannot honour, and for tools and variables that are longer than the context.
    """
    prompts = model.prompts
    variables = _variables(body, model)
    use = _tool_use(body, model)
    if use is not None and prompts.reads("tools"):
        variables["tools"] = [tool.shown() for tool in _shown_tools(body)]
    elif use is not None:
        messages = _instructed(messages, use.format.instruction(_shown_tools(body)))
    return messages, ChatOptions(variables, continues=_continues(body, messages)), use


def _continues(body: TemplateBody, messages: Sequence[Message]) -> bool:
    continues = bool(body.continue_final_message)
    if continues and body.add_generation_prompt:
        raise Refused(
            "an answer cannot both go on with a message and begin one",
            param="add_generation_prompt",
        )
    if body.add_generation_prompt is False and not continues:
        raise Refused(
            "add_generation_prompt can be false only with continue_final_message",
            param="add_generation_prompt",
            code="unsupported_parameter",
        )
    if continues and messages[-1].role != "assistant":
        raise Refused(
            "continue_final_message needs an assistant's message at the end",
            param="continue_final_message",
        )
    return continues


def _variables(body: TemplateBody, model: ServedModel) -> dict[str, object]:
    found: dict[str, object] = {}
    prompts = model.prompts
    check_unicode(body.chat_template_kwargs, "chat_template_kwargs")
    given = json.dumps(body.chat_template_kwargs, ensure_ascii=False)
    check_length([given], model.vocabulary, model.max_context, "chat_template_kwargs")
    for name, value in (body.chat_template_kwargs or {}).items():
        if name in _OURS or not prompts.reads(name):
            raise Refused(
                f"the model's chat template does not take {name}; leave it out",
                param=f"chat_template_kwargs.{name}",
                code="unsupported_parameter",
            )
        found[name] = value
    effort = body.reasoning_effort
    if effort is None:
        return found
    if prompts.reads("reasoning_effort"):
        return {**found, "reasoning_effort": effort}
    if effort == "none" and prompts.reads("enable_thinking"):
        return {**found, "enable_thinking": False}
    raise Refused(
        f"the model's chat template knows no reasoning effort {effort!r}; leave it out",
        param="reasoning_effort",
        code="unsupported_parameter",
    )


def _tool_use(body: TemplateBody, model: ServedModel) -> ToolUse | None:
    choice = body.tool_choice or "auto"
    if not body.tools:
        if choice in ("none", "auto"):
            return None
        raise Refused("tool_choice asks for a call, and there are no tools", param="tool_choice")
    tools = _shown_tools(body)
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        raise Refused("two tools have one name; give each its own", param="tools")
    check_unicode([tool.shown() for tool in tools], "tools")
    shown = json.dumps([tool.shown() for tool in tools], ensure_ascii=False)
    vocabulary = model.vocabulary
    check_length([shown], vocabulary, model.max_context, "tools")
    if vocabulary.encode(shown, special=True) != vocabulary.encode(shown):
        raise Refused("the tools hold a control token of the model; take it out", param="tools")
    if choice == "none":
        return None
    for place, tool in enumerate(tools):
        if (kind := (tool.parameters or {}).get("type", "object")) != "object":
            raise Refused(
                f"the arguments of a function are an object, and the schema's type is {kind!r}",
                param=f"tools[{place}].function.parameters.type",
            )
    named = choice.function.name if isinstance(choice, NamedChoice) else None
    if named is not None and named not in names:
        raise Refused(
            f"tool_choice names {named!r}; there are {', '.join(names)}", param="tool_choice"
        )
    places = tuple(i for i, name in enumerate(names) if named in (None, name))
    return ToolUse(
        format=model.prompts.tool_format,
        tools=tuple(tools[place] for place in places),
        places=places,
        is_required=choice != "auto",
        is_named=named is not None,
        parallel=named is None and body.parallel_tool_calls is not False,
    )


def _shown_tools(body: TemplateBody) -> list[Tool]:
    functions = [tool.function for tool in body.tools or ()]
    return [Tool(one.name, one.description or "", one.parameters) for one in functions]


def _instructed(messages: list[Message], instruction: str) -> list[Message]:
    """The messages with a system text that shows the tools."""
    if messages[0].role == "system":
        first = replace(messages[0], content=f"{messages[0].content}\n\n{instruction}")
        return [first, *messages[1:]]
    return [Message("system", instruction), *messages]


def called_turn(
    role: str, text: str, calls: Sequence[ToolCallBody], prompts: PromptMaker, where: str
) -> Message:
    """An assistant's message with its calls, or a tool's result, as the model's template takes it.

    Raises Refused for arguments that are no JSON object.
    """
    writing = prompts.tool_format
    if role == "tool":
        if prompts.reads("tools"):
            return Message("tool", writing.result_text(text))
        return Message("user", f"<tool_response>\n{text}\n</tool_response>")
    found = []
    for number, call in enumerate(calls):
        given = call.function.arguments or "{}"
        if not is_object(given):
            raise Refused(
                "the arguments of a call are the text of a JSON object",
                param=f"{where}.tool_calls[{number}].function.arguments",
            )
        found.append(ToolCall(call.function.name, given))
    return Message("assistant", "\n".join(filter(None, [text, writing.calls_text(found)])))
