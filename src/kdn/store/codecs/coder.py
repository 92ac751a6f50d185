"""The seam "how are small numbers coded", and its dull twin in numpy.

rANS (Duda, arXiv 1311.2540) over the fixed shapes, 32 interleaved states of 32 bits, refilled by 16
bits from one stream of words that begins with the states.  The compiled twin is in `native.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdn.errors import CorruptBlock
from kdn.store.codecs.codec import RunForm
from kdn.store.codecs.shapes import ESCAPE, SCALE_BITS, shapes
from kdn.store.codecs.values import Floats, write_values

__all__ = ["Bytes", "Coder", "Ints", "NumpyCoder", "Restoring", "Symbols", "Words"]

Symbols = np.ndarray[Any, np.dtype[np.int8]]
Words = np.ndarray[Any, np.dtype[np.uint16]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Ints = np.ndarray[Any, np.dtype[np.int32]]

LANES = 32
_LOW = 1 << 16
_SLOT = (1 << SCALE_BITS) - 1


@dataclass(frozen=True)
class Restoring:
    """What makes values of numbers, by column."""

    factor: Bytes
    """Quarters of the number in the row before that are added: 0 to 3."""
    step: Floats
    mean: Floats


class Coder(ABC):
    """Symbols to words and back; symbols are [rows, width] and column c has shape `shape[c]`."""

    @abstractmethod
    def encode(self, symbols: Symbols, shape: Bytes) -> Words:
        """The words. Every symbol is in its shape."""

    @abstractmethod
    def decode(self, words: Words, shape: Bytes, rows: int) -> Symbols:
        """The symbols. Raises CorruptBlock for words that no encoder makes."""

    @abstractmethod
    def restore(self, symbols: Symbols, escapes: Ints, by: Restoring, form: RunForm) -> memoryview:
        """The run: numbers out of symbols and escapes, times step, plus mean, rounded to its dtype.

        To each number is added factor/4, rounded down, of the one in the row before.  Raises
        CorruptBlock when there are not as many escapes as symbols ask for.
        """


class NumpyCoder(Coder):
    """One step for all lanes at a time."""

    def encode(self, symbols: Symbols, shape: Bytes) -> Words:
        spans = shapes().spans[np.broadcast_to(shape, symbols.shape), symbols.view(np.uint8)]
        flat = spans.reshape(-1).astype(np.uint64)
        assert (flat & 0xFFFF).all(), "a symbol is not in its shape"
        state = np.full(LANES, _LOW, dtype=np.uint64)
        backwards: list[Words] = []
        for start in reversed(range(0, flat.size, LANES)):
            span = flat[start : start + LANES]
            frequency, x = span & 0xFFFF, state[: span.size]
            full = x >= frequency << (32 - SCALE_BITS)
            backwards.append((x[full] & 0xFFFF).astype(np.uint16))
            x = np.where(full, x >> 16, x)
            state[: span.size] = (x // frequency << SCALE_BITS) + x % frequency + (span >> 16)
        return np.concatenate([state.astype("<u4").view(np.uint16), *reversed(backwards)])

    def decode(self, words: Words, shape: Bytes, rows: int) -> Symbols:
        if words.size < 2 * LANES:
            raise CorruptBlock("the words end before the states do")
        slots, state = shapes().slots, words[: 2 * LANES].view("<u4").astype(np.uint32)
        columns, at = np.tile(shape, rows), 2 * LANES
        symbols = np.empty(columns.size, dtype=np.uint8)
        for start in range(0, columns.size, LANES):
            column = columns[start : start + LANES]
            x = state[: column.size]
            slot = slots[column, x & _SLOT]
            symbols[start : start + LANES] = slot & 0xFF
            x = (slot >> 20) * (x >> SCALE_BITS) + ((slot >> 8) & _SLOT)
            empty = x < _LOW
            stop = at + int(np.count_nonzero(empty))
            if stop > words.size:
                raise CorruptBlock("the words end before the symbols do")
            x[empty] = x[empty] << 16 | words[at:stop]
            state[: column.size], at = x, stop
        if at != words.size or (state != _LOW).any():
            raise CorruptBlock("the words do not end where encoding began")
        return symbols.view(np.int8).reshape(rows, -1)

    def restore(self, symbols: Symbols, escapes: Ints, by: Restoring, form: RunForm) -> memoryview:
        numbers = symbols.astype(np.int32)
        escaped = symbols == ESCAPE
        if np.count_nonzero(escaped) != escapes.size:
            raise CorruptBlock("the escapes are not as many as the symbols ask for")
        numbers[escaped] = escapes
        for row in range(1, len(numbers)):
            numbers[row] += (by.factor.astype(np.int32) * numbers[row - 1]) >> 2
        values = numbers.astype(np.float32) * by.step + by.mean
        parts = values.reshape(form.num_tokens, 2, form.num_channels)
        return write_values(parts.transpose(1, 0, 2), form)
