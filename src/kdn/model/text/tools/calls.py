"""The nouns of tool calling, and what every way of writing calls has in common."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = [
    "CallReader",
    "Tool",
    "ToolCall",
    "ToolFormat",
    "call_rules",
    "is_object",
    "read_calls",
    "read_cut_call",
]


def _cut_anywhere(*parts: str) -> str:
    """A pattern of these parts in a row that also fits what ends after any of them."""
    return "(?:".join(parts) + ")?" * (len(parts) - 1)


_CALL = re.compile(
    r'\{\s*"name"\s*:\s*(?P<name>"(?:[^"\\]|\\.)*")\s*,\s*'
    r'"(?:arguments|parameters)"\s*:\s*(?P<arguments>.*)\}',
    re.DOTALL,
)
_CUT_CALL = re.compile(
    _cut_anywhere(
        *(r"\{", r"\s*", *'"name"', r"\s*", ":", r"\s*", r'(?P<begun>"(?:[^"\\]|\\.)*\\?)'),
        *(r'(?P<end>")', r"\s*", ",", r"\s*", '"'),
        f"(?:{_cut_anywhere(*'arguments')}|{_cut_anywhere(*'parameters')})",
        *('"', r"\s*", ":", r"\s*", r"(?P<arguments>\{.*)"),
    ),
    re.DOTALL,
)
_OPTIONS = {"x-guidance": {"whitespace_pattern": r"[ \t\n]{0,16}"}}
"""White space inside of arguments, as in all constrained JSON."""


@dataclass(frozen=True)
class Tool:
    """A function that the model may call; `parameters` is a JSON schema."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None

    def shown(self) -> dict[str, Any]:
        """As OpenAI writes it, and as chat templates expect it."""
        function: dict[str, Any] = {"name": self.name}
        if self.description:
            function["description"] = self.description
        function["parameters"] = dict(self.parameters or {"type": "object", "properties": {}})
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class ToolCall:
    """One call; `arguments` is the text of a JSON object, letter by letter as it was written.

    Of a call that was cut off it is the beginning of one.
    """

    name: str
    arguments: str


class CallReader(Protocol):
    """Takes an answer as it comes, and gives out text and calls in order."""

    def push(self, text: str) -> list[str | ToolCall]:
        """What became certain with `text`."""

    def finish(self, *, is_cut: bool = False) -> list[str | ToolCall]:
        """What is left at the end. Where the answer `is_cut`, the last call may have the beginning of its
        arguments only; one that was cut off within its name is left out."""


class ToolFormat(Protocol):
    """A way of writing calls. Changes nothing, so that one serves everybody."""

    def fits(self, template: str) -> bool:
        """Does this chat template write calls so?"""

    def instruction(self, tools: Sequence[Tool]) -> str:
        """A system text, for templates that do not show tools themselves."""

    def calls_text(self, calls: Sequence[ToolCall]) -> str:
        """Calls as the model writes them."""

    def result_text(self, text: str) -> str:
        """The result of a tool, as the template takes it."""

    def grammar(self, tools: Sequence[Tool], *, parallel: bool) -> str:
        """Lark grammar of one call, or of one and more."""

    def reader(self, tools: Sequence[Tool]) -> CallReader:
        """Reads one answer, which may call these."""


def read_calls(text: str, *, bare: bool = True) -> list[ToolCall] | None:
    """A call, or a list of calls, in JSON; None for anything else.

    With `bare`, a name and nothing else is a call without arguments.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    written = _CALL.fullmatch(text.strip())
    if isinstance(found, dict) and written and json.loads(written["name"]) == found.get("name"):
        arguments = written["arguments"].strip()
        return [ToolCall(found["name"], arguments)] if is_object(arguments) else None
    many = found if isinstance(found, list) else [found]
    calls = [_call(one, bare=bare) for one in many]
    return [one for one in calls if one is not None] if calls and all(calls) else None


def read_cut_call(text: str, names: Collection[str] | None = None) -> list[ToolCall] | None:
    """A call that was cut off, without one before its arguments; None for what does not begin a call.

    With `names`, only calls of these count.
    """
    written = _CUT_CALL.fullmatch(text.lstrip()) if text.strip() else None
    if written is None:
        return None if text.strip() else []
    begun = written["begun"] or '"'
    if names is not None and not any(
        json.dumps(name) == begun + '"' if written["end"] else json.dumps(name).startswith(begun)
        for name in names
    ):
        return None
    if written["arguments"] is None:
        return []
    try:
        return [ToolCall(json.loads(begun + '"'), written["arguments"])]
    except ValueError:
        return None


def is_object(text: str) -> bool:
    """Is it the text of a JSON object?"""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _call(found: object, *, bare: bool) -> ToolCall | None:
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return None
    nothing: dict[str, Any] | None = {} if bare and len(found) == 1 else None
    arguments = found.get("arguments", found.get("parameters", nothing))
    if not isinstance(arguments, dict):
        return None
    return ToolCall(found["name"], json.dumps(arguments, ensure_ascii=False))


def call_rules(tools: Sequence[Tool], arguments: str) -> Iterator[str]:
    """Rules of a Lark grammar for one call of each tool, whose arguments stand under that name."""
    for number, tool in enumerate(tools):
        head = json.dumps(f'{{"name": {json.dumps(tool.name)}, "{arguments}": ')
        schema = dict(tool.parameters or {}) or {"type": "object", "properties": {}}
        yield f'call{number}: {head} arguments{number} "}}"'
        yield f"arguments{number}: %json {json.dumps({'type': 'object', **schema, **_OPTIONS})}"
