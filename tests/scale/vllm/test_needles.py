"""The four arms: without kdn, cold, warm in the same process, warm in a new one; forty needle prompts.

After LMCache's issue 4492, where 38 of 38 answers were wrong after a restart and nothing said so.  The
model is random, so a needle is not found; but every answer must be the same in all arms.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scale.vllm.running import Answer, Vllm, text, tiny, vllm

pytestmark = pytest.mark.timeout(900)
NEEDLES = 40


def needle_prompts() -> list[list[int]]:
    """Fixed beforehand: eight documents of 300 to 930 tokens, five needles in each, one question."""
    prompts = []
    for number in range(NEEDLES):
        document = text(f"haystack {number // 5}", 300 + 90 * (number // 5))
        place = 20 + len(document) * (number % 5) // 5
        needle = text(f"needle {number}", 12)
        prompts.append(document[:place] + needle + document[place:] + text("question", 24))
    return prompts


def answers(engine: Vllm) -> list[Answer]:
    """One after another, so that what is computed together is the same in every arm."""
    return [engine.one(prompt) for prompt in needle_prompts()]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_four_arms_give_the_same_answers(tmp_path: Path, dtype: str) -> None:
    """In fp32 all arms agree.  In bf16 a warm answer is, bit for bit, that of vLLM's own prefix hit."""
    model = tiny(tmp_path / "model")
    settings = {"folder": str(tmp_path / "store")}
    with vllm(model, None, dtype=dtype) as engine:
        off = answers(engine)
        own = answers(engine)
    with vllm(model, settings, dtype=dtype) as engine:
        cold = answers(engine)
        engine.settle()
        warm = answers(engine)
    with vllm(model, settings, dtype=dtype) as engine:
        again = answers(engine)
        assert engine.counts()["loaded_tokens"] > 0
        assert engine.counts()["failed_tokens"] == 0
    if dtype == "float32":
        for arm in (own, cold, warm, again):
            assert [one.tokens for one in arm] == [one.tokens for one in off]
    assert cold == off
    assert [one.cached for one in again] == [one.cached for one in own]
    assert again == own
    assert warm == own
