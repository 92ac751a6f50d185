"""Calls of tools: how models write them, and how an answer is told apart as it comes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdn.core import Constraint
from kdn.model import Grammars, LoadedModel, Tokenizer, Tool, ToolCall, ToolFormat
from kdn.model.text.tools import FORMATS, tool_format
from kdn.model.text.tools.hermes import Hermes
from kdn.model.text.tools.llama import Llama
from kdn.testing import TINY_TEMPLATE
from tests.model.test_grammar import tiny

__all__ = ["tiny"]
WEATHER = Tool(
    "weather",
    "Tells it.",
    {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"],
     "additionalProperties": False},
)  # fmt: skip
TOOLS = [WEATHER, Tool("time")]
CALLS = [ToolCall("weather", '{"place": "Ulm; }"}'), ToolCall("time", "{}")]


def read(form: ToolFormat, pieces: list[str], *, is_cut: bool = False) -> list[str | ToolCall]:
    """Text joined, calls as they are."""
    reader = form.reader(TOOLS)
    found: list[str | ToolCall] = []
    pushed = [one for piece in pieces for one in reader.push(piece)]
    for one in [*pushed, *reader.finish(is_cut=is_cut)]:
        if isinstance(one, str) and found and isinstance(found[-1], str):
            found[-1] += one
        else:
            found.append(one)
    return found


def test_a_template_tells_how_its_model_calls() -> None:
    assert isinstance(tool_format("{{ '<tool_call>' }}"), Hermes)
    assert isinstance(tool_format("{{ '<|python_tag|>' }}"), Llama)
    assert isinstance(tool_format(TINY_TEMPLATE), Hermes)


@pytest.mark.parametrize("form", FORMATS)
@given(cuts=st.sets(st.integers(1, 150)))
def test_what_is_written_is_read_however_it_is_cut(form: ToolFormat, cuts: set[int]) -> None:
    text = form.calls_text(CALLS)
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    assert read(form, [text[a:b] for a, b in pairwise(edges)]) == CALLS


@pytest.mark.parametrize("form", FORMATS)
def test_a_call_that_is_cut_off_anywhere_is_never_text(form: ToolFormat) -> None:
    """Nothing until the name is whole, then the beginning of the arguments; the first call is whole."""
    for calls in (CALLS[:1], CALLS[::-1]):
        text, last = form.calls_text(calls), calls[-1]
        start = text.rindex(f'"{last.name}"') + len(f'"{last.name}"')
        for size in range(text.index("{") + 1, len(text) + 1):
            found = read(form, list(text[:size]), is_cut=True)
            assert [one for one in found if isinstance(one, str) and "tool_call" not in one] == []
            read_calls = [one for one in found if isinstance(one, ToolCall)]
            for whole, one in zip(calls, read_calls, strict=False):
                assert one.name == whole.name
                assert whole.arguments.startswith(one.arguments)
            if size > start + len(', "parameters": '):
                assert len(read_calls) == len(calls), text[:size]
        assert read_calls == calls


def test_text_in_front_of_a_call_that_is_cut_off_stays() -> None:
    text = 'I look.\n<tool_call>\n{"name": "f", "arguments": {"html": "a <'
    assert read(Hermes(), [text], is_cut=True) == ["I look.", ToolCall("f", '{"html": "a <')]
    assert read(Hermes(), ["<tool_call>I think"], is_cut=True) == ["<tool_call>I think"]
    assert read(Llama(), ['{"name": "we'], is_cut=True) == []


@pytest.mark.parametrize(
    ("text", "is_cut"),
    [
        ('{"name": "Ada", "age": 36}', False),
        ('{"name": "weather"}', False),
        ('{"name": "Ada", "parameters": {"age": 36}}', False),
        ('{"title": "A long story about', True),
        ('{"name": "weather", "arguments": "none', True),
        ('{"name": "weather", "at": [1', True),
        ('{"name": "Ad', True),
        ('{"name": "Ada", "arguments": {"age', True),
        ('{"name": 3', True),
        ('{"nam": "weather"', True),
    ],
)
def test_an_answer_in_json_that_calls_no_tool_is_text(text: str, is_cut: bool) -> None:
    for pieces in ([text], list(text)):
        assert read(Llama(), pieces, is_cut=is_cut) == [text]


def test_what_tags_mark_is_no_call_without_its_shape() -> None:
    """Between tags a bare name calls without arguments; an object of other keys is text."""
    assert read(Hermes(), ['<tool_call>{"name": "time"}</tool_call>']) == [ToolCall("time", "{}")]
    person = '<tool_call>{"name": "Ada", "age": 36}</tool_call>'
    assert read(Hermes(), list(person)) == [person]
    cut = '<tool_call>\n{"title": "A long story about'
    assert read(Hermes(), list(cut), is_cut=True) == [cut]


@given(cuts=st.sets(st.integers(1, 150)))
def test_text_before_and_between_is_text(cuts: set[int]) -> None:
    text = "I look.\n\n" + Hermes().calls_text(CALLS) + "\n"
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    assert read(Hermes(), [text[a:b] for a, b in pairwise(edges)]) == ["I look.", *CALLS]


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "a < b <tool",
        "<tool_call>\n{broken\n</tool_call>",
        '<tool_call>\n{"name": 3}\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": [1]}\n</tool_call>',
        "  ",
    ],
)
def test_what_is_no_call_stays_text_letter_by_letter(text: str) -> None:
    assert read(Hermes(), list(text)) == [text]
    assert read(Llama(), list(text)) == [text]


def test_a_list_of_calls_and_an_unclosed_call_are_read() -> None:
    """SmolLM2 writes a list; a model that ends before the closing tag has called nevertheless."""
    listed = '<tool_call>[{"name": "a", "arguments": {"x": 1}}, {"name": "b", "arguments": {}}]</tool_call>'
    assert read(Hermes(), [listed]) == [ToolCall("a", '{"x": 1}'), ToolCall("b", "{}")]
    assert read(Hermes(), ['<tool_call>\n{"name": "a", "arguments": {}}']) == [ToolCall("a", "{}")]
    assert read(Llama(), ['{"name": "a", ']) == ['{"name": "a", ']


@pytest.mark.parametrize("form", FORMATS)
def test_the_grammar_of_required_calls_takes_calls_only(
    form: ToolFormat,
    tiny: LoadedModel,
) -> None:
    pytest.importorskip("llguidance")
    tokenizer: Tokenizer = tiny.tokenizer
    grammars: Grammars = tiny.grammars
    one, several = (
        grammars.compile(Constraint.grammar(form.grammar([WEATHER, Tool("time")], parallel=many)))
        for many in (False, True)
    )

    def fits(text: str, *, parallel: bool) -> bool:
        matcher = (several if parallel else one).matcher()
        for token_id in tokenizer.encode(text):
            if token_id not in matcher.allowed().tolist():
                return False
            matcher.take(token_id)
        return matcher.is_complete or 256 in matcher.allowed().tolist()

    call = form.calls_text(CALLS[:1])
    assert fits(call, parallel=False)
    assert fits(form.calls_text(CALLS), parallel=True)
    assert not fits(form.calls_text(CALLS), parallel=False)
    assert not fits(call.replace("place", "plane"), parallel=True)
    assert not fits("I look. " + call, parallel=True)
