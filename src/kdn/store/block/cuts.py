"""Where a prompt is cut into blocks, and what they are called."""

from __future__ import annotations

from collections.abc import Iterator

from kdn.core import BLOCK_TOKENS, BlockId, Fingerprint, Prompt, Recipe, chain_hashes

__all__ = ["block_ids", "cut_blocks"]


def cut_blocks(prompt: Prompt, upto: int) -> list[tuple[int, int]]:
    """Half-open ranges of the blocks that the first `upto` tokens of `prompt` are stored as.

    A segment's border ends a block; inside a segment cuts stand at multiples of BLOCK_TOKENS from
    the segment's start, so the same segment is cut alike wherever it stands.
    """
    return [
        (cut, min(cut + BLOCK_TOKENS, stop, upto))
        for _, start, stop in prompt.spans()
        for cut in range(start, min(stop, upto), BLOCK_TOKENS)
    ]


def block_ids(
    prompt: Prompt, upto: int, *, fingerprint: Fingerprint, recipe: Recipe, salt: str
) -> Iterator[BlockId]:
    """The ids of `cut_blocks(prompt, upto)`, in order, hashed in one pass over the tokens."""
    cuts = cut_blocks(prompt, upto)
    chains = chain_hashes(prompt.token_ids, [start for start, _ in cuts])
    for (start, stop), after in zip(cuts, chains, strict=True):
        tokens = prompt.token_ids[start:stop]
        yield BlockId(fingerprint, recipe, salt, after, start, tokens)
