"""Names, prompts and what a store served: small nouns with their arithmetic."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from kdn.core import BLOCK_TOKENS, PUBLIC_SALT, Prompt, Role, Segment, Served

SEGMENTS = st.lists(
    st.builds(
        Segment,
        st.sampled_from(Role),
        st.lists(st.integers(0, 50_000), max_size=5).map(tuple),
    ),
    max_size=6,
)


def test_importing_the_nouns_imports_no_torch() -> None:
    code = "import sys, kdn.core; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names_that_stored_blocks_and_documents_rely_on() -> None:
    assert BLOCK_TOKENS == 256
    assert PUBLIC_SALT == "public"
    assert [role.value for role in Role] == [
        "prelude",
        "document",
        "history",
        "instruction",
        "question",
    ]


def test_spans_are_half_open_and_follow_each_other() -> None:
    prompt = Prompt((Segment(Role.PRELUDE, (1, 2)), Segment(Role.QUESTION, (3,))))
    assert [(one.role.value, a, b) for one, a, b in prompt.spans()] == [
        ("prelude", 0, 2),
        ("question", 2, 3),
    ]


@given(SEGMENTS)
def test_a_prompt_is_its_segments_in_order(segments: list[Segment]) -> None:
    prompt = Prompt(tuple(segments))
    pieces = [prompt.token_ids[a:b] for _, a, b in prompt.spans()]
    assert pieces == [one.token_ids for one in segments]
    assert prompt.num_tokens == sum(one.num_tokens for one in segments)


def test_served_requests_are_equal_by_value() -> None:
    """Replays and recordings are compared so."""
    one = Served(1.5, 100, 8, 64, 512, 128, 4096, 3, 2, 1)
    assert one == Served(1.5, 100, 8, 64, 512, 128, 4096, 3, 2, 1)
    assert one.hit_blocks <= one.num_blocks


@given(SEGMENTS, SEGMENTS)
def test_prompts_that_begin_alike_have_tokens_that_begin_alike(
    first: list[Segment], then: list[Segment]
) -> None:
    """What prefix reuse rests on: a longer conversation extends the tokens of a shorter one."""
    short, long = Prompt(tuple(first)), Prompt((*first, *then))
    assert long.token_ids[: short.num_tokens] == short.token_ids
    assert long.num_tokens == short.num_tokens + Prompt(tuple(then)).num_tokens
