"""What stands in a GGUF file: metadata by name, and tensors as they are stored.

The `gguf` package reads these files too, but takes seconds for the hundred thousand strings of a
vocabulary; here only its tables of block sizes and its arithmetic of quantised blocks are used.
The format: magic, version, counts, (key, type, value)s, (name, shape, type, offset)s, then data.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from kdn.errors import WeightsError

__all__ = ["GgufFile", "StoredTensor", "read_gguf"]

_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
"""Type number -> struct letter, all little-endian."""
_VERSIONS = (2, 3)
_MAX_FIELDS, _MAX_TENSORS = 1 << 16, 1 << 17
_MAX_STRING, _MAX_ITEMS, _MAX_DEPTH = 1 << 24, 1 << 24, 4
"""Bounds of a header: bytes of a string, items of a list, lists in lists. A vocabulary has 2^18 items."""
_MAX_AXES = 4
_ALIGNMENTS = tuple(1 << power for power in range(3, 21))


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it lies in the file."""

    name: str
    shape: tuple[int, ...]
    """Row-major, as torch counts: outputs first."""
    kind: gguf.GGMLQuantizationType
    data: np.ndarray[Any, np.dtype[np.uint8]]
    """[..., bytes of a row]."""

    def values(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The numbers that are meant, in fp32. Raises NotImplementedError for an unknown type."""
        found = gguf.quants.dequantize(self.data, self.kind)
        return np.array(found, np.float32).reshape(self.shape)


@dataclass(frozen=True)
class GgufFile:
    """An open file. Tensors are views of it: read on use."""

    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]


def read_gguf(path: Path) -> GgufFile:
    """Metadata and tensors of a GGUF file. Raises WeightsError for anything else, or a torn one."""
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return _Cursor(data).file()
    except (OSError, ValueError, struct.error, KeyError, OverflowError) as error:
        raise WeightsError(
            f"{path} cannot be read as GGUF ({error}); it is torn or something else: fetch it again"
        ) from error


class _Cursor:
    """A place in the file that moves on as things are read."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 0

    def file(self) -> GgufFile:
        if self._take(4) != b"GGUF":
            raise ValueError("the first four bytes are not 'GGUF'")
        version, num_tensors, num_fields = self._scalar("I"), self._scalar("Q"), self._scalar("Q")
        if version not in _VERSIONS:
            raise ValueError(f"format version {version} is not one of {_VERSIONS}")
        if num_fields > _MAX_FIELDS or num_tensors > _MAX_TENSORS:
            raise ValueError(f"it tells of {num_fields} fields and {num_tensors} tensors")
        metadata = {}
        for _ in range(num_fields):
            key = self._string()
            metadata[key] = self._value(self._scalar("I"))
        headers = [self._header() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if alignment not in _ALIGNMENTS:
            raise ValueError(f"its alignment is {str(alignment)[:40]}")
        start = -(-self._at // alignment) * alignment
        tensors = {header[0]: self._tensor(start, *header) for header in headers}
        if sum(tensor.data.size for tensor in tensors.values()) > len(self._data):
            raise ValueError("its tensors lie over one another")
        return GgufFile(metadata, tensors)

    def _take(self, size: int) -> bytes:
        found = self._data[self._at : self._at + size]
        if len(found) != size:
            raise ValueError(f"it ends at byte {len(self._data)}, inside its header")
        self._at += size
        return found

    def _scalar(self, letter: str) -> Any:
        return struct.unpack("<" + letter, self._take(struct.calcsize("<" + letter)))[0]

    def _string(self) -> str:
        size = self._scalar("Q")
        if size > _MAX_STRING:
            raise ValueError(f"a string of {size} bytes stands in its header")
        return self._take(size).decode("utf-8")

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array(self._scalar("I"), self._scalar("Q"), depth + 1)
        return self._scalar(_SCALARS[kind])

    def _array(self, kind: int, count: int, depth: int) -> list[Any]:
        if count > _MAX_ITEMS or depth > _MAX_DEPTH:
            raise ValueError(f"a list of {count} items, {depth} deep, stands in its header")
        if kind in (_STRING, _ARRAY):
            return [self._value(kind, depth) for _ in range(count)]
        dtype = np.dtype("<" + _SCALARS[kind])
        return list(np.frombuffer(self._take(count * dtype.itemsize), dtype).tolist())

    def _header(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape (outputs first), type number, and offset into the data."""
        name, num_axes = self._string(), self._scalar("I")
        if not 1 <= num_axes <= _MAX_AXES:
            raise ValueError(f"the tensor {name[:80]} has {num_axes} axes")
        axes = [int(self._scalar("Q")) for _ in range(num_axes)]
        return name, tuple(reversed(axes)), self._scalar("I"), self._scalar("Q")

    def _tensor(
        self, start: int, name: str, shape: tuple[int, ...], number: int, offset: int
    ) -> StoredTensor:
        kind = gguf.GGMLQuantizationType(number)
        block_values, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        if shape[-1] % block_values or 0 in shape:
            raise ValueError(f"the tensor {name[:80]} has the shape {shape}")
        row_bytes = shape[-1] // block_values * block_bytes
        size = row_bytes * math.prod(shape[:-1])
        if start + offset + size > len(self._data):
            raise ValueError(f"it ends at byte {len(self._data)}, inside the tensor {name}")
        data = np.frombuffer(self._data, np.uint8, size, start + offset)
        return StoredTensor(name, shape, kind, data.reshape(*shape[:-1], row_bytes))
