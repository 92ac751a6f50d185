"""Repair packets: any `k` of `k + m` equal pieces give all `k` back (a Cauchy Reed-Solomon code).

Bloemer et al., "An XOR-Based Erasure-Resilient Coding Scheme" (1995): the repair piece `i` is the sum over
`j` of `piece[j] / (x[i] + y[j])` in the field of 256 elements, where all `x` and `y` differ.  Every square
part of such a matrix can be inverted.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from kdn.errors import BadInput

__all__ = ["MOST_PIECES", "recover", "repair"]

MOST_PIECES = 256
"""Pieces and repair pieces together."""

_POLYNOMIAL = 0x11D
_ORDER = 255

Bytes = NDArray[np.uint8]


def repair(pieces: Bytes, num: int) -> Bytes:
    """`num` repair pieces, [num, length], of pieces [k, length].

    Raises BadInput when there would be more than `MOST_PIECES` of both.
    """
    k = len(pieces)
    if not k or k + num > MOST_PIECES:
        raise BadInput(
            f"{k} pieces and {num} repair pieces: 1 to {MOST_PIECES} together are possible"
        )
    return _product(_cauchy(np.arange(k, k + num), np.arange(k)), pieces)


def recover(have: Mapping[int, Bytes], k: int) -> Bytes:
    """All `k` pieces, [k, length], from those that arrived by index; repair piece `i` has the index `k + i`.

    Raises BadInput when fewer than `k` arrived.
    """
    if len(have) < k:
        raise BadInput(f"{len(have)} pieces of {k} arrived; {k - len(have)} more are needed")
    missing = [j for j in range(k) if j not in have]
    present = [j for j in range(k) if j in have]
    out = np.zeros((k, len(next(iter(have.values())))), np.uint8)
    for j in present:
        out[j] = have[j]
    if not missing:
        return out
    rows = np.array([i for i in sorted(have) if i >= k][: len(missing)])
    known = _product(_cauchy(rows, np.array(present, np.int64)), out[present])
    rest = np.stack([have[int(i)] for i in rows]) ^ known
    out[missing] = _product(_inverse(_cauchy(rows, np.array(missing))), rest)
    return out


def _powers() -> tuple[NDArray[np.int64], Bytes]:
    """Logarithms of 1 to 255 to the base 2, and powers of 2 over two rounds."""
    powers, logs, value = np.zeros(2 * _ORDER, np.uint8), np.zeros(256, np.int64), 1
    for exponent in range(_ORDER):
        powers[exponent] = powers[exponent + _ORDER] = value
        logs[value] = exponent
        value <<= 1
        if value > _ORDER:
            value ^= _POLYNOMIAL
    return logs, powers


_LOGS, _POWERS = _powers()


def _cauchy(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Bytes:
    """1 / (row + column) for numbers of which none occurs twice."""
    return np.asarray(_POWERS[_ORDER - _LOGS[rows[:, None] ^ columns[None, :]]])


def _times(factor: int, values: Bytes) -> Bytes:
    """The product of one element with many."""
    if not factor:
        return np.zeros_like(values)
    return np.where(values == 0, 0, _POWERS[_LOGS[factor] + _LOGS[values]]).astype(np.uint8)


def _product(matrix: Bytes, vectors: Bytes) -> Bytes:
    """Matrix [n, k] times [k, length]."""
    out = np.zeros((len(matrix), vectors.shape[1]), np.uint8)
    for i, row in enumerate(matrix):
        for j, factor in enumerate(row):
            out[i] ^= _times(int(factor), vectors[j])
    return out


def _inverse(matrix: Bytes) -> Bytes:
    """By Gauss and Jordan; no pivot of a Cauchy matrix is zero."""
    size = len(matrix)
    both = np.concatenate((matrix, np.eye(size, dtype=np.uint8)), axis=1)
    for i in range(size):
        both[i] = _times(int(_POWERS[_ORDER - _LOGS[both[i, i]]]), both[i])
        for other in range(size):
            if other != i:
                both[other] ^= _times(int(both[other, i]), both[i])
    return both[:, size:]
