"""Bytes out equal bytes in: exponents apart from mantissas, each through zstd where that helps.

Neighbouring values of one channel have nearly the same exponent and random mantissas.  So every
value is turned by one bit (the sign goes after the mantissa), values are put channel by channel,
and byte planes are written one after another: zstd finds what there is in the exponents' plane, and
planes that do not shrink are stored as they are, which makes reading them a copy.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import zstandard

from kdn.errors import CorruptBlock
from kdn.store.codecs.codec import RunForm
from kdn.store.codecs.framed import FramedCodec

__all__ = ["Lossless"]

_SIZE = struct.Struct("<I")
_WORTH = 0.97
"""A plane that shrinks by less is stored as it is."""

Bits = np.ndarray[Any, np.dtype[Any]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Lossless(FramedCodec):
    """Byte planes and zstd. Exact."""

    name = "lossless"
    lossless = True

    def _pack(self, run: memoryview, form: RunForm) -> bytes:
        packer = zstandard.ZstdCompressor(level=1, write_checksum=False)
        return b"".join(_pack_plane(packer, plane) for plane in _planes(run, form))

    def _unpack(self, packed: memoryview, form: RunForm) -> memoryview:
        unpacker = zstandard.ZstdDecompressor()
        plane_bytes = form.num_tokens * form.num_channels
        planes, at = [], 0
        for _ in range(2 * form.shape.value_bytes):
            plane, at = _unpack_plane(unpacker, packed, at, plane_bytes)
            planes.append(plane)
        if at != packed.nbytes:
            raise CorruptBlock(f"{packed.nbytes - at} bytes follow the last plane")
        return _join(planes, form)


def _bits(form: RunForm) -> str:
    return "<u2" if form.shape.value_bytes == 2 else "<u4"


def _planes(run: memoryview, form: RunForm) -> list[Bytes]:
    """K's planes, highest byte first, then V's; each holds one byte a value, channel by channel."""
    values = np.frombuffer(run, dtype=_bits(form)).reshape(2, form.num_tokens, form.num_channels)
    width = 8 * form.shape.value_bytes
    turned = (values << 1) | (values >> (width - 1))
    rows = np.ascontiguousarray(turned.transpose(0, 2, 1)).view(np.uint8)
    per_byte = rows.reshape(2, -1, form.shape.value_bytes)
    highest_first = range(form.shape.value_bytes - 1, -1, -1)
    return [np.ascontiguousarray(half[:, byte]) for half in per_byte for byte in highest_first]


def _join(planes: list[Bytes], form: RunForm) -> memoryview:
    width = form.shape.value_bytes
    per_byte = np.empty((2, form.num_channels * form.num_tokens, width), dtype=np.uint8)
    for number, plane in enumerate(planes):
        half, byte = divmod(number, width)
        per_byte[half, :, width - 1 - byte] = plane
    turned = per_byte.view(_bits(form)).reshape(2, form.num_channels, form.num_tokens)
    values: Bits = (turned >> 1) | (turned << (8 * width - 1))
    rows = np.ascontiguousarray(values.transpose(0, 2, 1))
    return rows.reshape(-1).view(np.uint8).data


def _pack_plane(packer: zstandard.ZstdCompressor, plane: Bytes) -> bytes:
    packed = packer.compress(plane.data)
    if len(packed) > _WORTH * plane.nbytes:
        packed = plane.tobytes()
    return _SIZE.pack(len(packed)) + packed


def _unpack_plane(
    unpacker: zstandard.ZstdDecompressor, packed: memoryview, at: int, plane_bytes: int
) -> tuple[Bytes, int]:
    """The plane that begins at `at`, and where the next one does. Never more than `plane_bytes`."""
    if at + _SIZE.size > packed.nbytes:
        raise CorruptBlock("a plane is missing")
    (size,) = _SIZE.unpack_from(packed, at)
    start, stop = at + _SIZE.size, at + _SIZE.size + size
    if size > plane_bytes or stop > packed.nbytes:
        raise CorruptBlock(f"a plane of {size} bytes where at most {plane_bytes} can be")
    stored = packed[start:stop]
    if size == plane_bytes:
        return np.frombuffer(stored, dtype=np.uint8), stop
    return np.frombuffer(_inflate(unpacker, stored, plane_bytes), dtype=np.uint8), stop


def _inflate(unpacker: zstandard.ZstdDecompressor, stored: memoryview, plane_bytes: int) -> bytes:
    """What zstd makes of `stored`: exactly `plane_bytes`, which is checked before it unpacks."""
    try:
        if zstandard.frame_content_size(stored) != plane_bytes:
            raise CorruptBlock("a plane claims another length than it must have")
        return unpacker.decompress(stored, max_output_size=plane_bytes)
    except zstandard.ZstdError as error:
        raise CorruptBlock(f"a plane cannot be unpacked: {error}") from error
