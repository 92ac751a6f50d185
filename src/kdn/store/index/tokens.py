"""Token ids as bytes: four a token, little-endian, as the chain hashes of `kdn.core` see them."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence

from kdn.core import TokenIds

__all__ = ["TOKEN_BYTES", "common_tokens", "pack_tokens", "unpack_tokens"]

TOKEN_BYTES = 4


def pack_tokens(token_ids: Sequence[int]) -> bytes:
    """The ids as bytes. Raises OverflowError for an id that is negative or needs over 32 bits."""
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
