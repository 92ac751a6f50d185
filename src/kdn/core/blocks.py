"""Blocks and their keys: whose KV, made how, for whom, after what, of which tokens."""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from kdn.core.names import (
    MAX_SALT_BYTES,
    VEILED,
    BlockKey,
    ChainHash,
    ContentId,
    Fingerprint,
    TokenIds,
)
from kdn.errors import BadInput

__all__ = [
    "EXACT",
    "MAX_TOKEN_ID",
    "TOKEN_BYTES",
    "BlockId",
    "Cause",
    "KvShape",
    "Recipe",
    "chain_hash",
    "chain_hashes",
    "check_salt",
    "common_tokens",
    "pack_tokens",
    "unpack_tokens",
]


class Cause(StrEnum):
    """Why KV is not what a full prefill would have given."""

    BLEND = "blend"
    SHARE = "share"
    STEER = "steer"
    CODEC = "codec"


@dataclass(frozen=True)
class Recipe:
    """How KV was made. Without causes it is exact; with any it is tainted, and so is all after it."""

    causes: tuple[Cause, ...] = ()
    detail: str = ""

    @property
    def tainted(self) -> bool:
        return bool(self.causes)

    @property
    def name(self) -> str:
        """A short text that is the same for equal recipes: `exact`, or `blend+codec:...`."""
        return "+".join(self.causes) + (f":{self.detail}" if self.detail else "") or "exact"


EXACT = Recipe()


@dataclass(frozen=True)
class KvShape:
    """What the KV of one token looks like in one model."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    """`bfloat16`, `float16` or `float32`."""

    @property
    def value_bytes(self) -> int:
        return 4 if self.dtype == "float32" else 2

    @property
    def layer_token_bytes(self) -> int:
        """Bytes of K and V of one token at one layer."""
        return 2 * self.num_kv_heads * self.head_dim * self.value_bytes

    @property
    def token_bytes(self) -> int:
        """Bytes of K and V of one token at all layers."""
        return self.num_layers * self.layer_token_bytes


def _digest(*parts: str | bytes) -> str:
    """SHA-256 over length-prefixed parts, so that no two lists of parts can run together."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()


def chain_hash(token_ids: Sequence[int]) -> ChainHash:
    """Hash of all tokens from the start of a prompt. Says nothing of how they were cut in blocks."""
    return ChainHash(hashlib.sha256(pack_tokens(token_ids)).hexdigest())


def chain_hashes(token_ids: Sequence[int], cuts: Sequence[int]) -> list[ChainHash]:
    """`chain_hash(token_ids[:cut])` for ascending `cuts`, in one pass over the tokens."""
    state, start, found = hashlib.sha256(), 0, []
    for cut in cuts:
        if cut < start:
            raise ValueError(f"cuts must ascend: {cut} after {start}")
        state.update(pack_tokens(token_ids[start:cut]))
        found.append(ChainHash(state.copy().hexdigest()))
        start = cut
    return found


@dataclass(frozen=True)
class BlockId:
    """Everything that names a block: whose KV, made how, for whom, after what, of which tokens."""

    fingerprint: Fingerprint
    recipe: Recipe
    salt: str
    after: ChainHash
    start: int
    """How many tokens stand before the block: the position its KV was computed at."""
    token_ids: TokenIds

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @cached_property
    def key(self) -> BlockKey:
        """The exact key: equal for equal ids, in every process, on every machine."""
        return BlockKey(
            _digest(
                "kdn-block-1",
                self.fingerprint,
                self.recipe.name,
                self.salt,
                self.after,
                pack_tokens(self.token_ids),
            )
        )

    @cached_property
    def content_id(self) -> ContentId:
        return ContentId(_digest("kdn-content-1", self.salt, pack_tokens(self.token_ids)))


TOKEN_BYTES = 4
MAX_TOKEN_ID = (1 << 8 * TOKEN_BYTES) - 1


def pack_tokens(token_ids: Sequence[int]) -> bytes:
    """The ids as bytes. Raises OverflowError for one below 0 or beyond `MAX_TOKEN_ID`."""
    return _swapped(array("I", token_ids)).tobytes()


def unpack_tokens(data: bytes) -> TokenIds:
    """The ids in `data`, whose length is a multiple of TOKEN_BYTES."""
    return tuple(_swapped(array("I", data)))


def common_tokens(left: bytes, right: bytes) -> int:
    """How many leading tokens two packed runs share."""
    shorter = min(len(left), len(right))
    left, right = left[:shorter], right[:shorter]
    if left == right:
        return shorter // TOKEN_BYTES
    # Read as little-endian numbers, the first byte that differs holds the lowest bit that does.
    differing = int.from_bytes(left, "little") ^ int.from_bytes(right, "little")
    lowest_bit = (differing & -differing).bit_length() - 1
    return lowest_bit // (8 * TOKEN_BYTES)


def _swapped(ids: array[int]) -> array[int]:
    assert ids.itemsize == TOKEN_BYTES
    if sys.byteorder == "big":
        ids.byteswap()
    return ids


def check_salt(salt: str) -> None:
    """Raises BadInput for a tenant's name that no block can carry."""
    try:
        size_bytes = len(salt.encode())
    except UnicodeEncodeError:
        raise BadInput(
            f"the salt {salt!r:.80} holds half a surrogate pair; use valid Unicode text"
        ) from None
    if size_bytes > MAX_SALT_BYTES:
        raise BadInput(f"the salt has {size_bytes} bytes; use one of {MAX_SALT_BYTES} at most")
    if salt.startswith(VEILED):
        raise BadInput(f"the salt {salt!r:.80} begins with U+0001, which kdn keeps for itself")
