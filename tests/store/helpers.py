"""Small blocks with recognisable bytes, shared by the store's tests."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Sequence

from kdn.clock import ManualClock
from kdn.core import EXACT, BlockId, ChainHash, Fingerprint, KvShape, Recipe, chain_hash
from kdn.machine.files import Files
from kdn.store import Block

MODEL = Fingerprint("model-a")
SHAPE = KvShape(num_layers=3, num_kv_heads=2, head_dim=4, dtype="float32")
"""64 bytes for K and V of a token at a layer, so 64 tokens fill a page."""


def block_id(
    tokens: Sequence[int],
    behind: Sequence[int] = (),
    *,
    fingerprint: Fingerprint = MODEL,
    recipe: Recipe = EXACT,
    salt: str = "",
) -> BlockId:
    """The id of `tokens` standing behind `behind`."""
    chain: ChainHash = chain_hash(behind)
    return BlockId(fingerprint, recipe, salt, chain, len(behind), tuple(tokens))


def run_of(block: BlockId, layer: int, shape: KvShape = SHAPE) -> bytes:
    """The bytes a layer of a test block has: different for every block and layer."""
    size = block.num_tokens * shape.layer_token_bytes
    return hashlib.shake_128(f"{block.key}/{layer}".encode()).digest(size)


def make_block(block: BlockId, shape: KvShape = SHAPE) -> Block:
    layers = tuple(run_of(block, layer, shape) for layer in range(shape.num_layers))
    return Block(block, shape, layers)


class JumpingClock(ManualClock):
    """A clock whose wall time can be set, as people and daemons do."""

    def jump(self, seconds: float) -> None:
        self._wall_s += seconds


class BadReads(Files):
    """A device whose reads fail, or give less than was asked for, as POSIX lets them."""

    def __init__(self) -> None:
        super().__init__()
        self.fails = self.short = False

    def read(self, descriptor: int, into: memoryview, start: int) -> int:
        if self.fails:
            raise OSError(errno.EIO, "Input/output error")
        return super().read(descriptor, into[:1000] if self.short else into, start)
