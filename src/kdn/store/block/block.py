"""The block as the rest of kdn hands it over, and where a prompt is cut into blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kdn.core import (
    BLOCK_TOKENS,
    BlockId,
    Fingerprint,
    KvShape,
    Prompt,
    Recipe,
    chain_hashes,
)
from kdn.errors import BadInput

__all__ = ["Block", "block_ids", "cut_blocks"]


@dataclass(frozen=True)
class Block:
    """A block with its bytes.

    `layers[l]` is one run: K [tokens, kv heads, head dim] without rotary position, then V of the
    same shape, both in `shape.dtype`, C order.  The bytes are copied when the block is stored, so
    the caller may reuse them afterwards.  Raises BadInput when the runs do not fit the shape.
    """

    id: BlockId
    shape: KvShape
    layers: tuple[memoryview | bytes, ...]

    @property
    def raw_bytes(self) -> int:
        """Bytes of all runs."""
        return self.id.num_tokens * self.shape.token_bytes

    def copy(self) -> Block:
        """The same block over bytes of its own."""
        return Block(self.id, self.shape, tuple(map(bytes, self.layers)))

    def __post_init__(self) -> None:
        if not 1 <= self.id.num_tokens <= BLOCK_TOKENS:
            raise BadInput(
                f"a block holds 1 to {BLOCK_TOKENS} tokens, this one {self.id.num_tokens}: cut it"
            )
        if len(self.layers) != self.shape.num_layers:
            raise BadInput(
                f"a block of a model with {self.shape.num_layers} layers came with"
                f" {len(self.layers)} runs: give one run per layer"
            )
        wanted = self.id.num_tokens * self.shape.layer_token_bytes
        for number, run in enumerate(self.layers):
            if memoryview(run).nbytes != wanted:
                raise BadInput(
                    f"layer {number} of a block of {self.id.num_tokens} tokens has"
                    f" {memoryview(run).nbytes} bytes, not {wanted}: give K then V of every token"
                )


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
