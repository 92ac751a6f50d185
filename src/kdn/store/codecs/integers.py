"""8- and 4-bit integers: keys scaled per channel, values per token, as KIVI has it (2402.02750).

Keys have channels that are large for every token, so a channel shares one scale over `key_tokens`
tokens; V has no such channels, so a token's head shares one.  Codes are evenly spaced from the
smallest value of a group to its largest; the smallest and the spacing are stored as float16, and
codes are chosen by what those have become by rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kdn.errors import CorruptBlock
from kdn.store.codecs.codec import RunForm
from kdn.store.codecs.framed import FramedCodec
from kdn.store.codecs.values import Floats, read_values, write_values

__all__ = ["Integers"]

Codes = np.ndarray[Any, np.dtype[np.uint8]]


class Integers(FramedCodec):
    """`bits` (8 or 4) a value, and a smallest and a spacing for each group."""

    lossless = False

    def __init__(self, bits: int, key_tokens: int, parameter: str) -> None:
        assert bits in (4, 8), "codes fill bytes"
        self.name = f"int{bits}"
        self._bits = bits
        self._key_tokens = key_tokens
        self._parameter = np.dtype(parameter)

    def _pack(self, run: memoryview, form: RunForm) -> bytes | None:
        values = read_values(run, form)
        largest = np.abs(values).max()
        if not largest <= np.finfo(self._parameter).max / 4:  # also when it is not a number
            return None
        parts = []
        for group in (*self._key_groups(values[0]), _value_groups(values[1], form)):
            low, spacing = self._scale(group)
            codes = _codes(group, low, spacing, self._bits)
            parts += [low.tobytes(), spacing.tobytes(), _squeeze(codes, self._bits)]
        return b"".join(parts)

    def _unpack(self, packed: memoryview, form: RunForm) -> memoryview:
        values = np.empty((2, form.num_tokens, form.num_channels), dtype=np.float32)
        at = 0
        for group in (*self._key_groups(values[0]), _value_groups(values[1], form)):
            at = self._fill(group, packed, at)
        if at != packed.nbytes:
            raise CorruptBlock(f"{packed.nbytes - at} bytes follow the last group")
        return write_values(values, form)

    def _key_groups(self, keys: Floats) -> list[Floats]:
        """Views [channels, tokens] of so many tokens each; groups lie along the last axis."""
        starts = range(0, keys.shape[0], self._key_tokens)
        return [keys[start : start + self._key_tokens].T for start in starts]

    def _scale(self, group: Floats) -> tuple[Floats, Floats]:
        """Smallest and spacing of each row, as they will be read back."""
        low = group.min(axis=-1, keepdims=True).astype(self._parameter)
        reach = group.max(axis=-1, keepdims=True) - low.astype(np.float32)
        tiny = np.finfo(self._parameter).tiny
        spacing = np.maximum(reach / (2**self._bits - 1), tiny).astype(self._parameter)
        return low, spacing

    def _fill(self, group: Floats, packed: memoryview, at: int) -> int:
        """Write one group's values; gives back where the next group begins."""
        rows, columns = int(np.prod(group.shape[:-1])), group.shape[-1]
        size = rows * self._parameter.itemsize
        low, spacing = (
            np.frombuffer(packed[start : start + size], dtype=self._parameter).astype(np.float32)
            for start in (at, at + size)
        )
        start = at + 2 * size
        stop: int = start + -(-rows * columns * self._bits // 8)
        farthest = np.abs(low, dtype=np.float64) + np.abs(spacing, dtype=np.float64) * 2**self._bits
        if not (farthest <= np.finfo(np.float32).max).all():  # or no number at all
            raise CorruptBlock("scales that no writer makes")
        codes = _expand(packed[start:stop], rows * columns, self._bits).reshape(group.shape)
        places = (*group.shape[:-1], 1)
        np.multiply(codes, spacing.reshape(places), out=group, dtype=np.float32)
        group += low.reshape(places)
        return stop


def _value_groups(values: Floats, form: RunForm) -> Floats:
    """A view [tokens, heads, dim] of V."""
    return values.reshape(form.num_tokens, form.shape.num_kv_heads, form.shape.head_dim)


def _codes(group: Floats, low: Floats, spacing: Floats, bits: int) -> Codes:
    steps = np.rint((group - low.astype(np.float32)) / spacing.astype(np.float32))
    return np.clip(steps, 0, 2**bits - 1).astype(np.uint8)


def _squeeze(codes: Codes, bits: int) -> bytes:
    flat = np.ascontiguousarray(codes).reshape(-1)
    if bits == 8:
        return flat.tobytes()
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return (flat[::2] | (flat[1::2] << 4)).tobytes()


def _expand(squeezed: memoryview, count: int, bits: int) -> Codes:
    """`count` codes. Raises ValueError when there are fewer."""
    flat = np.frombuffer(squeezed, dtype=np.uint8)
    if bits == 4:
        both = np.empty((flat.size, 2), dtype=np.uint8)
        both[:, 0], both[:, 1] = flat & 15, flat >> 4
        flat = both.reshape(-1)[:count]
    if flat.size != count:
        raise ValueError(f"{flat.size} codes where {count} must be")
    return flat
