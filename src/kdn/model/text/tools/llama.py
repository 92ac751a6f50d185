"""`{"name": ..., "parameters": ...}` and nothing else: Llama 3.1 and 3.2, several divided by `;`."""

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

__all__ = ["Llama"]

_TAG = "<|python_tag|>"


class Llama:
    """An answer is a call from its first letter on, or is text."""

    def fits(self, template: str) -> bool:
        return _TAG in template or '"parameters": dictionary of argument name' in template

    def instruction(self, tools: Sequence[Tool]) -> str:
        shown = "\n\n".join(
            json.dumps(tool.shown(), indent=4, ensure_ascii=False) for tool in tools
        )
        return (
            "Given the following functions, please respond with a JSON for a function call with its proper "
            "arguments that best answers the given prompt.\n\nRespond in the format "
            '{"name": function name, "parameters": dictionary of argument name and its value}. '
            f"Do not use variables.\n\n{shown}"
        )

    def calls_text(self, calls: Sequence[ToolCall]) -> str:
        return "; ".join(
            f'{{"name": {json.dumps(one.name)}, "parameters": {one.arguments}}}' for one in calls
        )

    def result_text(self, text: str) -> str:
        """The template puts it between quotation marks."""
        return json.dumps(text, ensure_ascii=False)[1:-1]

    def grammar(self, tools: Sequence[Tool], *, parallel: bool) -> str:
        rules = [f"start: call{' (' + json.dumps('; ') + ' call)*' if parallel else ''}"]
        rules.append("call: " + " | ".join(f"call{i}" for i in range(len(tools))))
        return "\n".join([*rules, *call_rules(tools, "parameters")])

    def reader(self, tools: Sequence[Tool]) -> CallReader:
        return _Reader([tool.name for tool in tools])


class _Reader:
    """Holds back what begins like a call until the end says whether it is one.

    Nothing marks a call as such here: an answer in JSON looks like one, so that only a call of a tool
    that was offered, with its arguments, is taken for one.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._held = ""
        self._is_text = False

    def push(self, text: str) -> list[str | ToolCall]:
        self._held += text
        begun = self._held.lstrip()
        if not self._is_text and (
            not begun or begun[0] == "{" or _TAG.startswith(begun[: len(_TAG)])
        ):
            return []
        self._is_text = True
        held, self._held = self._held, ""
        return [held]

    def finish(self, *, is_cut: bool = False) -> list[str | ToolCall]:
        held, self._held = self._held, ""
        if self._is_text or not held:
            return [held] if held else []
        calls = _divided(held.lstrip().removeprefix(_TAG), self._names, is_cut=is_cut)
        return list(calls) if calls is not None else [held]


def _divided(text: str, names: Sequence[str], *, is_cut: bool) -> list[ToolCall] | None:
    """Calls with `;` between them, which may also stand inside of a string; the last may be cut off."""
    found: list[ToolCall] = []
    decoder = json.JSONDecoder()
    rest = text.lstrip()
    while rest:
        try:
            _, end = decoder.raw_decode(rest)
        except (ValueError, RecursionError):
            cut = read_cut_call(rest, names) if is_cut else None
            return None if cut is None else found + cut
        calls = read_calls(rest[:end], bare=False)
        if calls is None or not all(call.name in names for call in calls):
            return None
        found += calls
        rest = rest[end:].lstrip().removeprefix(";").lstrip()
    return found or None
