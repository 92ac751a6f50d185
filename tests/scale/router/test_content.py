"""Bodies that begin alike have names that begin alike."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from kdn.scale.router.content import CHUNK_BYTES, prompt_of

LONG = "The tide tables of the northern harbours. " * 100  # 4,200 characters


def chat(*texts: str, **more: Any) -> dict[str, Any]:
    roles = ("system", "user", "assistant", "user")
    turns = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return {"model": "m", "messages": turns, **more}


def shared(one: dict[str, Any], other: dict[str, Any]) -> int:
    """How many leading names are equal."""
    both = zip(prompt_of(one).chunks, prompt_of(other).chunks, strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], both)))


def test_the_next_turn_begins_with_all_of_the_last() -> None:
    first, second = chat(LONG, "Hello?"), chat(LONG, "Hello?", "Yes.", LONG)
    assert shared(first, second) == len(prompt_of(first).chunks) == len(LONG) // CHUNK_BYTES
    assert 4200 <= 4 * prompt_of(first).num_tokens < 4300
    assert prompt_of(first).chunk_tokens == 128


def test_models_salts_tools_and_documents_part_prompts() -> None:
    plain = chat(LONG)
    others = [
        plain | {"model": "n"},
        plain | {"cache_salt": "tenant"},
        plain | {"tools": [{"type": "function"}]},
        plain | {"documents": [LONG]},
    ]
    assert [shared(plain, other) for other in others] == [0, 0, 0, 0]


def test_letters_of_any_script_count_alike_in_messages_and_in_a_prompt() -> None:
    """Two bytes each in UTF-8; the escapes of JSON took six."""
    text = "прилив" * 1000
    tokens = prompt_of({"prompt": text}).num_tokens
    assert tokens == 12_000 // 4
    assert 0 < prompt_of(chat(text)).num_tokens - tokens < 20


def test_settings_of_the_answer_change_nothing() -> None:
    assert prompt_of(chat(LONG, temperature=0.2, stream=True)) == prompt_of(chat(LONG))


def test_every_route_has_its_text() -> None:
    for body in (
        {"prompt": LONG},
        {"prompt": [LONG, "more"]},
        {"prompt": list(range(2000))},
        {"input": LONG},
        {"query": "q", "documents": [LONG, "b"]},
        {"text_1": LONG, "text_2": ["b"]},
    ):
        assert len(prompt_of({"model": "m", **body}).chunks) >= 8


def test_a_body_without_text_is_a_prompt_of_one_token() -> None:
    assert prompt_of({"model": "m"}).num_tokens == 1
    assert prompt_of({"messages": "\ud800"}).chunks == ()
