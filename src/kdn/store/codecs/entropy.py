"""Evenly spaced numbers, entropy-coded: KV at three to six times fewer bits, level by level.

After CacheGen (Liu et al., arXiv 2310.07240): a step per layer, models per layer and channel, a
range coder, several levels of loss.  What our measurements changed is told in docs/codecs.md:

    value -> (value - mean of its channel) / step of its layer -> nearest whole number
          -> less factor/4 of the number one token before, where neighbours are alike
          -> coded by the shape that fits the channel best, numbers out of reach as escapes

Packed: steps of K and V (f32), counts of words and of escapes (u32), then by column the mean (f16) and
factor << 6 | shape (u8), then the escapes (i32), then the words (u16).
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Any

import numpy as np

from kdn.errors import CorruptBlock
from kdn.store.codecs.codec import RunForm
from kdn.store.codecs.coder import Bytes, Restoring
from kdn.store.codecs.framed import FramedCodec
from kdn.store.codecs.native import fastest_coder
from kdn.store.codecs.shapes import ESCAPE, NUM_SHAPES, shapes
from kdn.store.codecs.values import Floats, read_values

__all__ = ["Entropy"]

_HEAD = struct.Struct("<ffII")
_KEYS_COARSER = 1.4
"""K bears a coarser step than V at equal harm (measured on SmolLM2 and Qwen2.5)."""
_LARGEST_NUMBER = 1 << 20
_SMALLEST_STEP = 1e-20

Wide = np.ndarray[Any, np.dtype[np.int64]]


class Entropy(FramedCodec):
    """A level of loss: `step` is V's, as a fraction of the layer's standard deviation."""

    lossless = False

    def __init__(self, level: int, step: float) -> None:
        self.name = f"entropy-{level}"
        self._step = step

    def _pack(self, run: memoryview, form: RunForm) -> bytes | None:
        values = read_values(run, form)
        # of float16 values a rounded one must not become infinite
        most = np.finfo(np.float16).max / (4 if form.shape.dtype == "float16" else 1)
        if not np.abs(values).max() < most:  # also when it is not a number
            return None
        columns = values.transpose(1, 0, 2).reshape(form.num_tokens, -1)
        mean = columns.mean(axis=0).astype("<f2")
        columns = columns - mean.astype(np.float32)
        steps = self._steps(columns, form)
        numbers = np.rint(columns / np.repeat(steps, form.num_channels)).astype(np.int64)
        if np.abs(numbers).max() > _LARGEST_NUMBER:
            return None
        factor = _factors(numbers)
        rest = numbers.copy()
        rest[1:] -= (factor * numbers[:-1]) >> 2
        shape = _best_shapes(rest)
        escaped = np.abs(rest) > shapes().reach[shape]
        symbols = np.where(escaped, ESCAPE, rest).astype(np.int8)
        words = fastest_coder().encode(symbols, shape)
        escapes = rest[escaped].astype("<i4")
        return b"".join(
            (
                _HEAD.pack(*steps, words.size, escapes.size),
                mean.tobytes(),
                (factor << 6 | shape).astype(np.uint8).tobytes(),
                escapes.tobytes(),
                words.astype("<u2", copy=False).tobytes(),
            )
        )

    def _unpack(self, packed: memoryview, form: RunForm) -> memoryview:
        key_step, value_step, num_words, num_escapes = _head(packed)
        width = 2 * form.num_channels
        sizes = (2 * width, width, 4 * num_escapes, 2 * num_words)
        if _HEAD.size + sum(sizes) != packed.nbytes:
            raise CorruptBlock("counts that do not fit the run's length")
        cuts = np.cumsum((_HEAD.size, *sizes))
        mean, modes, escapes, words = (packed[start:stop] for start, stop in pairwise(cuts))
        mode = np.frombuffer(modes, dtype=np.uint8)
        steps = np.array((key_step, value_step), dtype=np.float32)
        by = Restoring(
            (mode >> 6).astype(np.uint8),
            np.repeat(steps, form.num_channels),
            np.frombuffer(mean, dtype="<f2").astype(np.float32),
        )
        shape = (mode & 63).astype(np.uint8)
        if shape.max() >= NUM_SHAPES or not np.isfinite((*by.mean, *steps)).all():
            raise CorruptBlock("shapes, means or steps that no writer makes")
        coder = fastest_coder()
        symbols = coder.decode(np.frombuffer(words, dtype="<u2"), shape, form.num_tokens)
        return coder.restore(symbols, np.frombuffer(escapes, dtype="<i4"), by, form)

    def _steps(self, columns: Floats, form: RunForm) -> Floats:
        """K's and V's, by this layer's spread and its place: the middle layers bear least."""
        halves = columns.reshape(form.num_tokens, 2, form.num_channels)
        spread = np.sqrt(np.square(halves).mean(axis=(0, 2)))
        place = 0.75 + abs(form.layer / form.shape.num_layers - 0.5)
        steps = spread * (self._step * place) * np.array((_KEYS_COARSER, 1.0))
        least: Floats = np.maximum(steps, _SMALLEST_STEP).astype(np.float32)
        return least


def _head(packed: memoryview) -> tuple[float, float, int, int]:
    if packed.nbytes < _HEAD.size:
        raise CorruptBlock("the run ends inside its head")
    key_step, value_step, num_words, num_escapes = _HEAD.unpack_from(packed)
    return key_step, value_step, num_words, num_escapes


def _factors(numbers: Wide) -> Bytes:
    """For each column how many quarters of the number before predict a number best."""
    before, energy = numbers[:-1], np.square(numbers).sum(axis=0)
    alike = (before * numbers[1:]).sum(axis=0) / np.maximum(energy, 1)
    quarters: Bytes = np.clip(np.rint(4 * alike), 0, 3).astype(np.uint8)
    return quarters


def _best_shapes(rest: Wide) -> Bytes:
    """For each column the shape that codes its numbers in fewest bits."""
    width = rest.shape[1]
    symbols = np.where(np.abs(rest) < -ESCAPE, rest, ESCAPE) & 0xFF
    places = symbols + 256 * np.arange(width)
    counts = np.bincount(places.reshape(-1), minlength=256 * width).reshape(width, 256)
    cheapest: Bytes = np.argmin(counts.astype(np.float32) @ shapes().bits.T, axis=1).astype(
        np.uint8
    )
    return cheapest
