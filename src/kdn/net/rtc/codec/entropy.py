"""Whole numbers to bytes and back: range ANS (Duda 2013) over tables of Laplace distributions.

A packet's numbers are coded by tables that both ends know, chosen by what stands earlier in the same
packet; so a packet decodes without any other.  Numbers beyond `LARGEST` are escaped by 16 plain bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdn.errors import BadInput
from kdn.net.world.compiled import compiled

__all__ = ["LARGEST", "NUM_SCALES", "SCALES", "BitReader", "cost_bits", "encode", "frequencies"]

LARGEST = 24
"""Numbers from -LARGEST to LARGEST have a symbol of their own."""
NUM_SCALES = 24
SCALES = np.geomspace(0.06, 40.0, NUM_SCALES)
"""Mean magnitudes of the Laplace tables."""

_BITS = 12
_TOTAL = 1 << _BITS
_LOW = 1 << 16
_STATE_BITS = 24
"""A state lies between `_LOW` and 2 to this power; what would pass it goes out as a byte."""
_ESCAPE = 2 * LARGEST + 1
_SYMBOLS = _ESCAPE + 1
_MOST = 32767


def _laplace_tables() -> NDArray[np.int64]:
    """Cumulative frequencies of every scale, [NUM_SCALES, _SYMBOLS + 1]."""
    edges = np.arange(-LARGEST, LARGEST + 2) - 0.5
    tables = []
    for scale in SCALES:
        cdf = np.where(edges < 0, 0.5 * np.exp(edges / scale), 1 - 0.5 * np.exp(-edges / scale))
        inside = np.diff(cdf)
        tables.append(frequencies(np.append(inside, 1.0 - inside.sum())))
    return np.array(tables)


def frequencies(likelihoods: NDArray[np.float64]) -> NDArray[np.int64]:
    """Cumulative whole frequencies of sum 4096, none of them zero, [symbols + 1]."""
    share = likelihoods / likelihoods.sum()
    counts = np.maximum(np.floor(share * (_TOTAL - len(share))).astype(np.int64) + 1, 1)
    counts[int(np.argmax(counts))] += _TOTAL - int(counts.sum())
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(counts)))


_TABLES = _laplace_tables()
_COSTS = _BITS - np.log2(np.diff(_TABLES, axis=1))


def cost_bits(numbers: NDArray[np.int32], scales: NDArray[np.uint8]) -> float:
    """Bits that the numbers take, each under the table of its scale."""
    return float(_cost(numbers, scales, _COSTS))


def encode(
    heads: NDArray[np.int32],
    head_table: NDArray[np.int64],
    numbers: NDArray[np.int32],
    scales: NDArray[np.uint8],
) -> bytes:
    """`heads` under one table of their own, then `numbers`, each under the table of its scale."""
    clipped = np.clip(numbers, -_MOST, _MOST)
    return _encode(heads, head_table, clipped, scales, _TABLES).tobytes()


class BitReader:
    """Reads what `encode` wrote, in the same order. Raises BadInput when the bytes run out."""

    def __init__(self, data: bytes) -> None:
        if len(data) < 3:
            raise BadInput("a coded packet is cut off")
        self._data = np.frombuffer(data, np.uint8)
        self._state = int.from_bytes(data[:3], "little")
        self._at = 3

    def heads(self, count: int, table: NDArray[np.int64]) -> NDArray[np.int32]:
        """The next `count` symbols under `table`."""
        out = np.empty(count, np.int32)
        self._moved(_read_heads(self._data, self._state, self._at, table, out))
        return out

    def numbers(self, scales: NDArray[np.uint8]) -> NDArray[np.int32]:
        """The next numbers, one per scale."""
        out = np.empty(len(scales), np.int32)
        self._moved(_read_numbers(self._data, self._state, self._at, scales, _TABLES, out))
        return out

    def _moved(self, place: tuple[int, int]) -> None:
        self._state, self._at = place
        if self._at > len(self._data):
            raise BadInput("a coded packet is cut off")


@compiled
def _cost(
    numbers: NDArray[np.int32], scales: NDArray[np.uint8], costs: NDArray[np.float64]
) -> float:
    total = 0.0
    for i in range(len(numbers)):
        value = numbers[i]
        if -LARGEST <= value <= LARGEST:
            total += costs[scales[i], value + LARGEST]
        else:
            total += costs[scales[i], _ESCAPE] + 16.0
    return total


@compiled
def _encode(
    heads: NDArray[np.int32],
    head_table: NDArray[np.int64],
    numbers: NDArray[np.int32],
    scales: NDArray[np.uint8],
    tables: NDArray[np.int64],
) -> NDArray[np.uint8]:
    """ANS is a stack: symbols go in last first, and the bytes are turned round at the end."""
    out = np.empty(3 * len(heads) + 8 * len(numbers) + 8, np.uint8)
    state, size = _LOW, 0
    for i in range(len(numbers) - 1, -1, -1):
        table, value = tables[scales[i]], numbers[i]
        if -LARGEST <= value <= LARGEST:
            symbol = value + LARGEST
        else:
            symbol = _ESCAPE
            plain = value + 32768
            for shift in (0, 8):
                state, size = _put(out, state, size, ((plain >> shift) & 255) << 4, 16)
        state, size = _put(out, state, size, table[symbol], table[symbol + 1] - table[symbol])
    for i in range(len(heads) - 1, -1, -1):
        start = head_table[heads[i]]
        state, size = _put(out, state, size, start, head_table[heads[i] + 1] - start)
    for shift in (16, 8, 0):
        out[size] = (state >> shift) & 255
        size += 1
    return out[:size][::-1].copy()


@compiled
def _put(
    out: NDArray[np.uint8], state: int, size: int, start: int, frequency: int
) -> tuple[int, int]:
    while state >= (frequency << (_STATE_BITS - _BITS)):
        out[size] = state & 255
        size += 1
        state >>= 8
    return ((state // frequency) << _BITS) + state % frequency + start, size


@compiled
def _refill(data: NDArray[np.uint8], state: int, at: int) -> tuple[int, int]:
    while state < _LOW:
        byte = int(data[at]) if at < len(data) else 0
        at += 1
        state = (state << 8) | byte
        if at > len(data) + 4:
            break
    return state, at


@compiled
def _find(table: NDArray[np.int64], slot: int) -> int:
    """The symbol whose range holds the slot."""
    low, high = 0, len(table) - 1
    while high - low > 1:
        middle = (low + high) >> 1
        if table[middle] <= slot:
            low = middle
        else:
            high = middle
    return low


@compiled
def _read_heads(
    data: NDArray[np.uint8], state: int, at: int, table: NDArray[np.int64], out: NDArray[np.int32]
) -> tuple[int, int]:
    for i in range(len(out)):
        slot = state & (_TOTAL - 1)
        symbol = _find(table, slot)
        out[i] = symbol
        state = (table[symbol + 1] - table[symbol]) * (state >> _BITS) + slot - table[symbol]
        state, at = _refill(data, state, at)
    return state, at


@compiled
def _read_numbers(
    data: NDArray[np.uint8],
    state: int,
    at: int,
    scales: NDArray[np.uint8],
    tables: NDArray[np.int64],
    out: NDArray[np.int32],
) -> tuple[int, int]:
    for i in range(len(out)):
        table = tables[scales[i]]
        slot = state & (_TOTAL - 1)
        symbol = _find(table, slot)
        state = (table[symbol + 1] - table[symbol]) * (state >> _BITS) + slot - table[symbol]
        state, at = _refill(data, state, at)
        if symbol < _ESCAPE:
            out[i] = symbol - LARGEST
            continue
        plain = 0
        for shift in (8, 0):
            slot = state & (_TOTAL - 1)
            plain |= (slot >> 4) << shift
            state = 16 * (state >> _BITS) + (slot & 15)
            state, at = _refill(data, state, at)
        out[i] = plain - 32768
    return state, at
