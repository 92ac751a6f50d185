"""8-bit floats (e4m3, as in OCP's FP8 paper: 4 bits of exponent, 3 of mantissa, no infinity).

Every channel of K and of V is scaled so that its largest value is 448, the largest that e4m3 has.
The scale is a float32 per channel.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kdn.errors import CorruptBlock
from kdn.store.codecs.codec import RunForm
from kdn.store.codecs.framed import FramedCodec
from kdn.store.codecs.values import Floats, read_values, write_values

__all__ = ["Fp8"]

_LARGEST = 448.0
_LARGEST_SCALE = np.finfo(np.float32).max / np.float32(_LARGEST)
_NAN = 0x7F
_SMALLEST_NORMAL = 2.0**-6

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Fp8(FramedCodec):
    """e4m3 with one scale a channel. Two bytes become one."""

    name = "fp8"
    lossless = False

    def _pack(self, run: memoryview, form: RunForm) -> bytes | None:
        values = read_values(run, form)
        if not np.isfinite(values).all():
            return None
        largest = np.abs(values).max(axis=1, keepdims=True)
        # Within e4m3's range even where all values of a channel are tiny.
        scale = np.maximum(largest / np.float32(_LARGEST), np.float32(1e-30))
        return b"".join((scale.astype("<f4").tobytes(), _to_e4m3(values / scale).tobytes()))

    def _unpack(self, packed: memoryview, form: RunForm) -> memoryview:
        scale_bytes = 2 * form.num_channels * 4
        scale = np.frombuffer(packed[:scale_bytes], dtype="<f4").reshape(2, 1, -1)
        codes = np.frombuffer(packed[scale_bytes:], dtype=np.uint8)
        too_large = not (np.abs(scale) <= _LARGEST_SCALE).all()  # or no number at all
        if too_large or (codes & _NAN == _NAN).any():
            raise CorruptBlock("scales or codes that no writer makes")
        shape = (2, form.num_tokens, form.num_channels)
        return write_values(_TABLE[codes].reshape(shape) * scale, form)


def _to_e4m3(values: Floats) -> Bytes:
    """The nearest e4m3 of every value, ties to even; magnitudes above the largest become it."""
    bits = values.view(np.uint32)
    sign = ((bits >> 24) & 0x80).astype(np.uint8)
    magnitude = np.minimum(np.abs(values), np.float32(_LARGEST))
    raw = magnitude.view(np.uint32)
    rounded = raw + (((raw >> 20) & 1) + 0x7FFFF)
    normal = (rounded >> 20).astype(np.int32) - ((127 - 7) << 3)
    small = np.rint(magnitude * np.float32(2.0**9)).astype(np.int32)
    code = np.where(magnitude < _SMALLEST_NORMAL, small, normal)
    return code.astype(np.uint8) | sign


def _table() -> Floats:
    """The value of each code; the two NaN codes, which are never written, count as zero."""
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    values = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    values[codes & _NAN == _NAN] = 0
    return np.where(codes >= 128, -values, values).astype(np.float32)


_TABLE = _table()
