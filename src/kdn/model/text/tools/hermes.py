"""`<tool_call>{"name": ..., "arguments": ...}</tool_call>`: Hermes, Qwen2.5 and 3, SmolLM2."""

from __future__ import annotations

import json
from collections.abc import Sequence

from kdn.model.text.tools.calls import (
    CallReader,
    Tool,
    ToolCall,
    call_rules,
    read_calls,
    read_cut_call,
)

__all__ = ["Hermes"]

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


class Hermes:
    """Calls between tags, among text."""

    def fits(self, template: str) -> bool:
        return _OPEN in template

    def instruction(self, tools: Sequence[Tool]) -> str:
        shown = "\n".join(json.dumps(tool.shown(), ensure_ascii=False) for tool in tools)
        return (
            "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
            f"You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{shown}\n"
            "</tools>\n\nFor each function call, return a json object with function name and arguments "
            f"within {_OPEN}{_CLOSE} XML tags:\n{_OPEN}\n"
            f'{{"name": <function-name>, "arguments": <args-json-object>}}\n{_CLOSE}'
        )

    def calls_text(self, calls: Sequence[ToolCall]) -> str:
        return "\n".join(
            f'{_OPEN}\n{{"name": {json.dumps(one.name)}, "arguments": {one.arguments}}}\n{_CLOSE}'
            for one in calls
        )

    def result_text(self, text: str) -> str:
        return text

    def grammar(self, tools: Sequence[Tool], *, parallel: bool) -> str:
        rules = [f"start: call{' (' + json.dumps(chr(10)) + ' call)*' if parallel else ''}"]
        names = " | ".join(f"call{i}" for i in range(len(tools)))
        rules.append(
            f"call: {json.dumps(_OPEN + chr(10))} ({names}) {json.dumps(chr(10) + _CLOSE)}"
        )
        return "\n".join([*rules, *call_rules(tools, "arguments")])

    def reader(self, tools: Sequence[Tool]) -> CallReader:
        """The tags tell a call, whatever it names."""
        return _Reader()


class _Reader:
    """Text up to a tag is given out, less what may be its beginning; inside, calls at the closing tag."""

    def __init__(self) -> None:
        self._held = ""
        self._inside = False
        self._had_calls = False

    def push(self, text: str) -> list[str | ToolCall]:
        self._held += text
        found: list[str | ToolCall] = []
        while (at := self._held.find(_CLOSE if self._inside else _OPEN)) >= 0:
            before = self._held[:at]
            if self._inside:
                self._held = self._held[at + len(_CLOSE) :]
                found += self._calls(before, _CLOSE)
            else:
                self._held = self._held[at + len(_OPEN) :]
                found += self._text(before.rstrip())
            self._inside = not self._inside
        if not self._inside:
            keep = _overlap(self._held)
            found += self._text(self._held[: len(self._held) - keep])
            self._held = self._held[len(self._held) - keep :]
        return found

    def finish(self, *, is_cut: bool = False) -> list[str | ToolCall]:
        held, self._held = self._held, ""
        if not self._inside:
            if is_cut and self._had_calls and _OPEN.startswith(held.strip()):
                return []
            return self._text(held.rstrip() if self._had_calls else held)
        found = read_calls(_before_tag(held)) or read_cut_call(held) if is_cut else None
        return list(found) if found is not None else self._calls(held, "")

    def _calls(self, text: str, closing: str) -> list[str | ToolCall]:
        calls = read_calls(text.strip())
        if calls is None:
            return [f"{_OPEN}{text}{closing}"]
        self._had_calls = True
        return list(calls)

    def _text(self, text: str) -> list[str | ToolCall]:
        """White space around calls is no text."""
        if self._had_calls and not text.strip():
            return []
        return [text] if text else []


def _before_tag(text: str) -> str:
    """The text without the beginning of a closing tag at its end."""
    bare = text.rstrip()
    for size in range(len(_CLOSE) - 1, 0, -1):
        if bare.endswith(_CLOSE[:size]):
            return bare[:-size]
    return bare


def _overlap(text: str) -> int:
    """How much of the end may belong to an opening tag: its beginning, or white space before it."""
    for size in range(min(len(_OPEN) - 1, len(text)), 0, -1):
        if _OPEN.startswith(text[-size:]):
            bare = text[: len(text) - size]
            return len(text) - len(bare.rstrip())
    return len(text) - len(text.rstrip())
