"""Whole encoded blocks from elsewhere: nothing is believed before every byte was checked."""

from __future__ import annotations

from kdn.core import BlockKey
from kdn.errors import CorruptBlock
from kdn.store.block.format import MAX_BLOCK_BYTES, EncodedBlock, Header
from kdn.store.block.reader import read_header
from kdn.store.tiers.tier import Handle

__all__ = ["Bytes", "check_whole", "read_whole"]


class Bytes(Handle):
    """A block that is in memory already."""

    def __init__(self, data: memoryview) -> None:
        self.buffer = data

    def read(self, start: int, stop: int) -> memoryview:
        return self.buffer[start:stop]

    def close(self) -> None:
        return


def check_whole(key: BlockKey, data: memoryview) -> EncodedBlock:
    """The block called `key` that `data` is. Raises CorruptBlock when it is anything else."""
    return read_whole(key, Bytes(data))


def read_whole(key: BlockKey, handle: Handle) -> EncodedBlock:
    """All of the block that was opened as `key`, verified. Raises CorruptBlock."""
    if handle.buffer.nbytes > MAX_BLOCK_BYTES:
        raise CorruptBlock(f"block {key}: {handle.buffer.nbytes} bytes are no block")
    header = read_header(handle, key)
    data = handle.read(0, header.size_bytes).toreadonly()
    _check_runs(header, data)
    return EncodedBlock(header, data)


def _check_runs(header: Header, data: memoryview) -> None:
    for layer in range(header.shape.num_layers):
        start, stop = header.layer_range(layer)
        header.layer(layer, data[start:stop])
    if header.sections_start < header.size_bytes:
        header.check_sections(data[header.sections_start :])
