"""An answer as history of the next turn: the text that its caller was given, and nothing else."""

from __future__ import annotations

import pytest

import kdn
from kdn.core import Constraint, Sampling


@pytest.mark.parametrize(("stop", "text"), [("\nUser:", "Yes."), ("Yes", "")])
def test_a_stop_string_is_no_part_of_the_next_turn(k: kdn.Kdn, stop: str, text: str) -> None:
    """A token a byte: those of the stop were generated, and cut off the text."""
    pytest.importorskip("llguidance")
    forced = Constraint.regex("Yes\\.\nUser: Why\\?")
    answer = k.generate("Is it?", sampling=Sampling(max_tokens=50, stop=(stop,), constraint=forced))
    assert answer.text == text
    assert answer.token_ids == tuple((text + stop).encode())
    turns = [
        {"role": "user", "content": "Is it?"},
        {"role": "assistant", "content": answer.text},
        {"role": "user", "content": "Why?"},
    ]
    prompt = k.prompts.request(turns).prompt
    said = k.model.tokenizer.decode(prompt.token_ids)
    assert said == f"user\nIs it?\nassistant\n{text}\nuser\nWhy?\nassistant\n"
