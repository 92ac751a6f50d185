"""Motion: a vector per block of 16 x 16 luma samples, in half samples, found by search.

The search is hierarchical: candidates from the neighbours and from a spiral of whole samples,
then the half samples around the best.  A vector that differs from its neighbours' must save its bits.
Vectors of lost blocks are guessed from their neighbours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdn.net.rtc.codec.picture import BLOCK, Picture
from kdn.net.world.compiled import compiled

__all__ = ["RANGE", "concealed", "estimate", "moved"]

RANGE = 31
"""Vectors lie within this many half samples in each direction."""

Vectors = NDArray[np.int8]

_STEPS = np.array([8, 4, 2, 1], np.int64)
_BIT_COST = 3
"""Absolute error over the 64 samples of a block that is compared, which one bit of a vector must save."""


def estimate(current: Picture, reference: Picture) -> Vectors:
    """Vectors [rows, columns, (down, right)] that predict `current` from `reference`."""
    return _search(current.y, reference.y)


def moved(reference: Picture, vectors: Vectors) -> Picture:
    """The reference with every block fetched from where its vector points; edges repeat."""
    y = _shift(reference.y, vectors, BLOCK, 2)
    u = _shift(reference.u, vectors, BLOCK // 2, 4)
    v = _shift(reference.v, vectors, BLOCK // 2, 4)
    return Picture(y, u, v)


def concealed(vectors: Vectors, present: NDArray[np.bool_]) -> Vectors:
    """The vectors, those not present replaced by the median of their present neighbours."""
    return _conceal(vectors, present)


@compiled
def _sample(plane: NDArray[np.uint8], down: int, right: int, unit: int) -> int:
    """The plane at (down, right) in 1/unit samples, between samples by weights; edges repeat."""
    height, width = plane.shape
    top, left = down // unit, right // unit
    below, beside = down - top * unit, right - left * unit
    y0, x0 = min(max(top, 0), height - 1), min(max(left, 0), width - 1)
    if below == 0 and beside == 0:
        return int(plane[y0, x0])
    y1, x1 = min(max(top + 1, 0), height - 1), min(max(left + 1, 0), width - 1)
    upper = int(plane[y0, x0]) * (unit - beside) + int(plane[y0, x1]) * beside
    lower = int(plane[y1, x0]) * (unit - beside) + int(plane[y1, x1]) * beside
    return (upper * (unit - below) + lower * below + unit * unit // 2) // (unit * unit)


@compiled
def _shift(
    plane: NDArray[np.uint8], vectors: NDArray[np.int8], block: int, unit: int
) -> NDArray[np.uint8]:
    out = np.empty_like(plane)
    for row in range(vectors.shape[0]):
        for column in range(vectors.shape[1]):
            dy, dx = int(vectors[row, column, 0]), int(vectors[row, column, 1])
            for y in range(row * block, (row + 1) * block):
                for x in range(column * block, (column + 1) * block):
                    out[y, x] = _sample(plane, y * unit + dy, x * unit + dx, unit)
    return out


@compiled
def _cost(
    current: NDArray[np.uint8],
    reference: NDArray[np.uint8],
    y0: int,
    x0: int,
    dy: int,
    dx: int,
    best: int,
) -> int:
    """Absolute error over every second sample of the block; stops once it is above `best`."""
    total = 0
    for y in range(y0, y0 + 16, 2):
        for x in range(x0, x0 + 16, 2):
            there = _sample(reference, 2 * y + dy, 2 * x + dx, 2)
            total += abs(int(current[y, x]) - there)
        if total > best:
            return total
    return total


@compiled
def _search(current: NDArray[np.uint8], reference: NDArray[np.uint8]) -> NDArray[np.int8]:
    rows, columns = current.shape[0] // 16, current.shape[1] // 16
    vectors = np.zeros((rows, columns, 2), np.int8)
    for row in range(rows):
        for column in range(columns):
            _search_block(current, reference, vectors, row, column)
    return vectors


@compiled
def _search_block(
    current: NDArray[np.uint8],
    reference: NDArray[np.uint8],
    vectors: NDArray[np.int8],
    row: int,
    column: int,
) -> None:
    """Start at zero, at the left or at the upper neighbour's vector; refine in halving steps."""
    y0, x0 = row * 16, column * 16
    by, bx = 0, 0
    near = _near(vectors, row, column)
    best = _cost(current, reference, y0, x0, 0, 0, 1 << 30) + _bits_cost(0, 0, near)
    for side in range(2):
        r, c = (row, column - 1) if side == 0 else (row - 1, column)
        if r >= 0 and c >= 0:
            dy, dx = int(vectors[r, c, 0]), int(vectors[r, c, 1])
            more = _bits_cost(dy, dx, near)
            cost = _cost(current, reference, y0, x0, dy, dx, best - more) + more
            if cost < best:
                best, by, bx = cost, dy, dx
    for step in _STEPS:
        cy, cx = by, bx
        for i in range(-1, 2):
            for j in range(-1, 2):
                dy = min(max(cy + i * step, -RANGE), RANGE)
                dx = min(max(cx + j * step, -RANGE), RANGE)
                more = _bits_cost(dy, dx, near)
                cost = _cost(current, reference, y0, x0, dy, dx, best - more) + more
                if cost < best:
                    best, by, bx = cost, dy, dx
    vectors[row, column, 0], vectors[row, column, 1] = by, bx


@compiled
def _near(vectors: NDArray[np.int8], row: int, column: int) -> tuple[int, int]:
    """The median of the left, upper and upper right vectors; the left or upper one at an edge."""
    if row == 0:
        if column == 0:
            return 0, 0
        return int(vectors[0, column - 1, 0]), int(vectors[0, column - 1, 1])
    if column == 0:
        return int(vectors[row - 1, 0, 0]), int(vectors[row - 1, 0, 1])
    beside = min(column + 1, vectors.shape[1] - 1)
    down = _median(
        int(vectors[row, column - 1, 0]),
        int(vectors[row - 1, column, 0]),
        int(vectors[row - 1, beside, 0]),
    )
    right = _median(
        int(vectors[row, column - 1, 1]),
        int(vectors[row - 1, column, 1]),
        int(vectors[row - 1, beside, 1]),
    )
    return down, right


@compiled
def _median(a: int, b: int, c: int) -> int:
    return max(min(a, b), min(max(a, b), c))


@compiled
def _bits_cost(down: int, right: int, near: tuple[int, int]) -> int:
    """What the vector's difference from its neighbours costs, in absolute error: two bits each doubling."""
    bits = 0
    for axis in range(2):
        far = abs((down if axis == 0 else right) - near[axis])
        while far > 0:
            bits += 2
            far >>= 1
    return _BIT_COST * bits


@compiled
def _conceal(vectors: NDArray[np.int8], present: NDArray[np.bool_]) -> NDArray[np.int8]:
    rows, columns, _ = vectors.shape
    out = vectors.copy()
    found = np.empty(8, np.int64)
    for row in range(rows):
        for column in range(columns):
            if present[row, column]:
                continue
            for axis in range(2):
                count = 0
                for r in range(max(row - 1, 0), min(row + 2, rows)):
                    for c in range(max(column - 1, 0), min(column + 2, columns)):
                        if present[r, c]:
                            found[count] = vectors[r, c, axis]
                            count += 1
                out[row, column, axis] = np.sort(found[:count])[count // 2] if count else 0
    return out
