"""Keys against their plain twin: the definition written out once more, byte by byte."""

from __future__ import annotations

import hashlib
import string
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from kdn.core import (
    BLOCK_TOKENS,
    EXACT,
    BlockId,
    Cause,
    Fingerprint,
    Prompt,
    Recipe,
    Role,
    Segment,
    chain_hash,
)
from kdn.store import block_ids, cut_blocks

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAMES = st.text(string.hexdigits, min_size=1, max_size=12).map(Fingerprint)
RECIPES = st.builds(
    Recipe,
    st.lists(st.sampled_from(Cause), max_size=3, unique=True).map(tuple),
    st.sampled_from(["", "int8", "a=0.3"]),
)
TOKENS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=30).map(tuple)
BLOCKS = st.builds(
    BlockId, NAMES, RECIPES, TEXT, TOKENS.map(chain_hash), st.integers(0, 10**6), TOKENS
)


def written_out(*parts: bytes) -> str:
    """Each part behind its length in eight bytes, little end first; SHA-256 of them all."""
    data = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    return hashlib.sha256(data).hexdigest()


def packed(tokens: tuple[int, ...]) -> bytes:
    return b"".join(token.to_bytes(4, "little") for token in tokens)


@given(BLOCKS)
def test_a_key_is_what_its_definition_says(block: BlockId) -> None:
    recipe = "+".join(cause.value for cause in block.recipe.causes)
    recipe += f":{block.recipe.detail}" if block.recipe.detail else ""
    assert block.key == written_out(
        b"kdn-block-1",
        block.fingerprint.encode(),
        (recipe or "exact").encode(),
        block.salt.encode(),
        block.after.encode(),
        packed(block.token_ids),
    )
    assert block.content_id == written_out(
        b"kdn-content-1", block.salt.encode(), packed(block.token_ids)
    )


@given(BLOCKS, BLOCKS)
def test_equal_keys_are_of_equal_kv(one: BlockId, other: BlockId) -> None:
    """All but the start, which follows from what stands before."""
    facts = [(b.fingerprint, b.recipe.name, b.salt, b.after, b.token_ids) for b in (one, other)]
    assert (one.key == other.key) == (facts[0] == facts[1])


@given(BLOCKS)
def test_taint_is_in_the_key(block: BlockId) -> None:
    """A lookup of exact KV can not find tainted KV, whatever else is equal."""
    exact = replace(block, recipe=EXACT)
    for cause in Cause:
        tainted = replace(block, recipe=Recipe((cause,)))
        assert tainted.recipe.tainted
        assert tainted.key != exact.key
        assert tainted.content_id == exact.content_id, "but its text is the same"


@given(
    st.lists(st.integers(0, 700), min_size=1, max_size=4),
    st.integers(0, 2000),
)
def test_blocks_of_a_prompt_cover_it_without_gaps_and_never_cross_segments(
    sizes: list[int], upto: int
) -> None:
    prompt = Prompt(
        tuple(Segment(Role.DOCUMENT, tuple(range(k, k + size))) for k, size in enumerate(sizes))
    )
    ends = {stop for _, _, stop in prompt.spans()}
    at = 0
    for start, stop in cut_blocks(prompt, upto):
        assert start == at
        assert 0 < stop - start <= BLOCK_TOKENS
        assert not any(start < end < stop for end in ends)
        at = stop
    assert at == min(upto, prompt.num_tokens)


def test_ids_of_a_prompt_name_what_stands_before_each_block() -> None:
    prompt = Prompt((Segment(Role.PRELUDE, (1, 2)), Segment(Role.DOCUMENT, tuple(range(300)))))
    made = list(block_ids(prompt, 302, fingerprint=Fingerprint("f"), recipe=EXACT, salt=""))
    assert [(one.start, one.num_tokens) for one in made] == [(0, 2), (2, 256), (258, 44)]
    assert [one.after for one in made] == [chain_hash(prompt.token_ids[:n]) for n in (0, 2, 258)]
