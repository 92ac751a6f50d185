"""Damage to blocks of every codec, by the ten thousand: what `make soak` counts and tests sample."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

import msgspec
import numpy as np

from kdn.core import Cause, KvShape, Recipe
from kdn.errors import CorruptBlock
from kdn.store import CODECS, Block, EncodedBlock, encode_block
from kdn.store.block.format import (
    ALIGN,
    PREAMBLE_BYTES,
    Header,
    _header_checksum,
    decode_header,
    header_bytes,
)
from kdn.store.block.wire import MAX_RUN_BYTES
from kdn.store.codecs import RunForm
from kdn.store.codecs.values import write_values
from tests.store.helpers import block_id

SHAPE = KvShape(num_layers=2, num_kv_heads=1, head_dim=16, dtype="bfloat16")
TOKENS = 16


def block_of(codec: str, seed: int = 0) -> EncodedBlock:
    """A small block with noise in it, written by `codec`."""
    lossless = CODECS[codec].lossless
    recipe = Recipe() if lossless else Recipe((Cause.CODEC,), codec)
    name = block_id(range(seed, seed + TOKENS), recipe=recipe)
    rng = np.random.default_rng(seed)
    runs = []
    for layer in range(SHAPE.num_layers):
        values = rng.normal(0, 1, (2, TOKENS, 16)).astype(np.float32)
        runs.append(write_values(values, RunForm(SHAPE, layer, TOKENS)))
    return encode_block(Block(name, SHAPE, tuple(runs)), CODECS[codec])


def read_whole(data: memoryview, encoded: EncodedBlock) -> list[memoryview]:
    """As a reader does it. Raises CorruptBlock at the first thing that is not right."""
    header = read_header(data, encoded)
    layers = []
    for layer in range(header.shape.num_layers):
        start, stop = header.layer_range(layer)
        layers.append(header.layer(layer, data[start:stop]))
    return layers


def read_header(data: memoryview, encoded: EncodedBlock) -> Header:
    region = header_bytes(data[:PREAMBLE_BYTES])
    if region > data.nbytes:
        raise CorruptBlock("ends inside its header")
    return decode_header(data[:region], encoded.key, data.nbytes)


def every_bit(encoded: EncodedBlock) -> Iterator[tuple[int, ...]]:
    """Each bit of the block alone."""
    return ((bit,) for bit in range(8 * encoded.size_bytes))


def some_bits(encoded: EncodedBlock, count: int, seed: int = 0) -> Iterator[tuple[int, ...]]:
    """One to eight bits, scattered, or close together as a failing sector has them."""
    rng, size = random.Random(seed), 8 * encoded.size_bytes
    for number in range(count):
        first, many = rng.randrange(size), rng.randint(1, 8)
        reach = 256 if number % 2 else size
        yield tuple({min(size - 1, first + rng.randrange(reach)) for _ in range(many)})


def undetected(encoded: EncodedBlock, flips: Iterable[tuple[int, ...]]) -> tuple[int, int]:
    """Flip, read, flip back: how many flips there were, and how many nobody noticed."""
    data = bytearray(encoded.data)
    view = memoryview(data)
    count = missed = 0
    for bits in flips:
        _flip(data, bits)
        try:
            read_whole(view, encoded)
            missed += 1
        except CorruptBlock:
            pass
        _flip(data, bits)
        count += 1
    assert read_whole(view, encoded), "whole again"
    return count, missed


def _flip(data: bytearray, bits: tuple[int, ...]) -> None:
    for bit in bits:
        data[bit >> 3] ^= 1 << (bit & 7)


def crafted(encoded: EncodedBlock, rng: random.Random) -> bytearray:
    """The block under a header that an attacker wrote: any claim, and the checksum fits it."""
    data = encoded.data
    length = int.from_bytes(data[12:16], "little")
    packed = bytearray(data[PREAMBLE_BYTES : PREAMBLE_BYTES + length])
    if rng.random() < 0.5:
        packed = bytearray(msgspec.msgpack.encode(_changed(bytes(packed), rng)))
    else:
        for _ in range(rng.randint(1, 6)):
            packed[rng.randrange(len(packed))] = rng.choice((0, 1, 0x7F, 0x80, 0xC1, 0xFF))
    start = -(-(PREAMBLE_BYTES + len(packed)) // ALIGN) * ALIGN
    region = bytearray(start)
    region[:12] = data[:12]
    region[12:16] = len(packed).to_bytes(4, "little")
    region[PREAMBLE_BYTES : PREAMBLE_BYTES + len(packed)] = packed
    region[16:PREAMBLE_BYTES] = _header_checksum(memoryview(region), encoded.key)
    return region + data[encoded.header.body_start :]


_STRANGE: tuple[object, ...] = (
    0, 1, -1, 2**31, 2**62, "", "../../x", "x" * 5000, b"", b"\0" * 4000, [], None, 1.5, "int4",
    "entropy-1", "lossless", "none", "float32", True, {"a": 1}, [[0, 1 << 40, b"\0" * 16]],
)  # fmt: skip


def _changed(packed: bytes, rng: random.Random) -> dict[str, object]:
    wire: dict[str, object] = msgspec.msgpack.decode(packed)
    for _ in range(rng.randint(1, 3)):
        wire[rng.choice(sorted(wire))] = rng.choice(_STRANGE)
    return wire


def survives(encoded: EncodedBlock, data: bytearray) -> bool:
    """Read a crafted block: False when it was refused. Asserts what must hold if it was not."""
    view = memoryview(data)
    try:
        header = read_header(view, encoded)
    except CorruptBlock:
        return False
    assert header.id.key == encoded.key
    assert header.run_bytes <= MAX_RUN_BYTES
    assert header.size_bytes == len(data)
    for layer in range(header.shape.num_layers):
        start, stop = header.layer_range(layer)
        assert 0 < start < stop <= len(data)
        try:
            run = header.layer(layer, view[start:stop], verify=False)
        except CorruptBlock:
            continue
        assert run.nbytes == header.run_bytes
    return True
