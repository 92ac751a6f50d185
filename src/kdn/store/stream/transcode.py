"""Layers of a stored block, transcoded: what a node sends when it is asked for a level.

One MessagePack array: the codec, then for every layer its bytes and a checksum that binds block,
layer, codec and bytes, as those of a stored block do.
"""

from __future__ import annotations

import msgspec
import xxhash

from kdn.core import BlockKey
from kdn.errors import BadInput, CorruptBlock
from kdn.store.block.format import Header
from kdn.store.block.reader import Handle, read_header
from kdn.store.codecs import CODECS, RunForm

__all__ = ["decode_layers", "encode_layers"]


class _Sent(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    codec: str
    runs: list[tuple[bytes, bytes]]


def encode_layers(key: BlockKey, handle: Handle, start: int, stop: int, codec: str) -> bytes:
    """Layers [start, stop) of the open block, verified and written with `codec`.

    Raises BadInput for a codec or for layers that there are not, and for a lossy codec over a block
    that went through one already; CorruptBlock when the block is damaged.
    """
    header = read_header(handle, key)
    _check_asked(header, start, stop, codec)
    first, last = header.layer_range(start)[0], header.layer_range(stop - 1)[1]
    data = handle.read(first, last).toreadonly()
    runs = []
    for layer in range(start, stop):
        begin, end = header.layer_range(layer)
        run = header.layer(layer, data[begin - first : end - first])
        form = RunForm(header.shape, layer, header.id.num_tokens)
        payload = bytes(CODECS[codec].encode(run, form))
        runs.append((payload, _checksum(key, layer, codec, payload)))
    return msgspec.msgpack.encode(_Sent(codec, runs))


def decode_layers(
    header: Header, data: bytes | memoryview, start: int, stop: int, codec: str
) -> list[memoryview]:
    """The runs of layers [start, stop) in what a node sent. Raises CorruptBlock for anything else."""
    key = header.id.key
    try:
        sent = msgspec.msgpack.decode(data, type=_Sent)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptBlock(f"block {key}: what came for {codec} is no such answer") from error
    if sent.codec != codec or len(sent.runs) != stop - start:
        raise CorruptBlock(f"block {key}: {len(sent.runs)} layers of {sent.codec} came instead")
    return [
        _run(header, layer, codec, payload, checksum)
        for layer, (payload, checksum) in zip(range(start, stop), sent.runs, strict=True)
    ]


def _run(header: Header, layer: int, codec: str, payload: bytes, checksum: bytes) -> memoryview:
    if _checksum(header.id.key, layer, codec, payload) != checksum:
        raise CorruptBlock(f"block {header.id.key}: layer {layer} as {codec} fails its checksum")
    form = RunForm(header.shape, layer, header.id.num_tokens)
    return CODECS[codec].decode(memoryview(payload), form).toreadonly()


def _check_asked(header: Header, start: int, stop: int, codec: str) -> None:
    if codec not in CODECS:
        raise BadInput(f"no codec {codec!r}; there are {', '.join(sorted(CODECS))}")
    if not 0 <= start < stop <= header.shape.num_layers:
        raise BadInput(f"layers {start} to {stop} of {header.shape.num_layers} were asked for")
    if not (CODECS[codec].lossless or CODECS[header.codec].lossless):
        raise BadInput(f"the block is stored as {header.codec} and loses no more precision")


def _checksum(key: BlockKey, layer: int, codec: str, payload: bytes) -> bytes:
    state = xxhash.xxh3_128(f"kdn-level/{key}/{layer}/{codec}/".encode())
    state.update(payload)
    return state.digest()
