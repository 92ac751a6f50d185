"""A coded picture as packets of which any subset decodes.

The latents' units and the motion vectors are dealt out to the packets by a pseudo-random map that both
ends know; vectors may go into several packets, since a wrong one costs more than its bits.  A packet says
all that is needed to read it: its picture's number and size, the level, the tables, how often vectors are
sent, the middle of its own, the format, and which weights coded it.  Everything is little-endian; a checksum
ends the header.
"""

from __future__ import annotations

import binascii
import struct
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kdn.errors import BadInput
from kdn.net.rtc.codec.entropy import NUM_SCALES, BitReader, cost_bits, encode, frequencies

__all__ = [
    "CLASSES",
    "FORMAT",
    "HEADER_BYTES",
    "LEAST_PACKETS",
    "MIXES",
    "MOST_PAYLOAD",
    "CodecTables",
    "Coded",
    "Dealt",
    "PacketHeader",
    "check_weights",
    "classes_of",
    "deal",
    "gather",
    "picture_bytes",
    "read_header",
]

CLASSES = 8
"""Activity classes of a unit; class 0 has zeros only."""
MIXES = 16
"""Tables of how often each class occurs, from still to busy."""
LEAST_PACKETS = 5
"""A picture goes into at least so many packets, so that one loss is a small share of it."""
MOST_PAYLOAD = 1200

_LIMITS = np.array([1e-9, 0.15, 0.3, 0.55, 1.0, 2.0, 4.5])
"""Mean magnitudes from which the next class begins."""
_HEADER = struct.Struct("<IBBBBbbBBBHH")
HEADER_BYTES = _HEADER.size
_INTRA = 1
_COPIES = 2
"""Bits of the flags: intra, and how often vectors are sent beyond the first time; the rest is the format."""
_MOST_COPIES = 4
_FORMATS = _COPIES * _MOST_COPIES
FORMAT = 1
"""What the header and the body look like; 0 had no fingerprint of the weights."""


@dataclass(frozen=True)
class CodecTables:
    """What the coder knows of the latents: measured after training, kept with the weights."""

    scales: NDArray[np.uint8]
    """Scale of each channel in a unit of each class: [2 (inter, intra), CLASSES, groups, channels]."""
    mixes: NDArray[np.float64]
    """Likelihoods of the classes: [2, MIXES, CLASSES]."""


@dataclass(frozen=True)
class Coded:
    """A picture after quantisation. `vectors` is [rows, columns, 2], all zero for an intra picture."""

    number: int
    intra: bool
    level: int
    units: NDArray[np.int32]
    """[groups * height * width, channels of a group]"""
    grid: tuple[int, int, int]
    """(groups, height, width) of the units."""
    vectors: NDArray[np.int8]
    copies: int = 1
    """Each vector goes into so many packets, 1 to 4."""
    weights: int = 0
    """A fingerprint of the weights that made the units, 16 bits."""


@dataclass(frozen=True)
class PacketHeader:
    """What the first bytes of a packet say. `rows` and `columns` count blocks of 16 luma samples."""

    number: int
    index: int
    count: int
    intra: bool
    level: int
    mix: int
    middle: tuple[int, int]
    vector_scale: int
    rows: int
    columns: int
    copies: int = 1
    weights: int = 0


@dataclass(frozen=True)
class Dealt:
    """What arrived of a picture; what did not is zero and not `present`."""

    header: PacketHeader
    units: NDArray[np.int32]
    present: NDArray[np.bool_]
    vectors: NDArray[np.int8]
    vectors_present: NDArray[np.bool_]


def classes_of(units: NDArray[np.int32]) -> NDArray[np.int32]:
    """The activity class of each unit, by the mean magnitude of its numbers."""
    return np.asarray(np.searchsorted(_LIMITS, np.abs(units).mean(1), side="right"), np.int32)


def picture_bytes(coded: Coded, tables: CodecTables) -> int:
    """About how long the picture's packets are together; within a few per cent of `deal`."""
    classes = classes_of(coded.units)
    half = int(coded.intra)
    mix = _best_mix(classes, tables.mixes[half])
    bits = float(-np.log2(tables.mixes[half, mix])[classes].sum())
    busy = classes > 0
    scales = _scales(tables, half, coded.grid, np.nonzero(busy)[0], classes)
    bits += cost_bits(coded.units[busy].reshape(-1), scales)
    if not coded.intra:
        flat = coded.vectors.reshape(-1, 2)
        every = np.arange(0, len(flat), max(LEAST_PACKETS // coded.copies, 1))
        _, scale, numbers = _vector_model(flat[every], _before(every, coded.vectors.shape[1]))
        bits += LEAST_PACKETS * cost_bits(numbers, np.full(len(numbers), scale, np.uint8))
    return int(bits / 8) + LEAST_PACKETS * (HEADER_BYTES + 3)


def deal(coded: Coded, tables: CodecTables) -> list[bytes]:
    """The picture's packets, at least LEAST_PACKETS, each at most MOST_PAYLOAD bytes.

    Raises BadInput for a picture that more than 255 packets would not hold.
    """
    count = max(-(-picture_bytes(coded, tables) // (MOST_PAYLOAD - 120)), LEAST_PACKETS)
    while count <= 255:
        packets = [_pack(coded, tables, index, count) for index in range(count)]
        if max(len(packet) for packet in packets) <= MOST_PAYLOAD:
            return packets
        count += 1
    raise BadInput(f"picture {coded.number} needs over 255 packets; scale the video down")


def read_header(packet: bytes) -> PacketHeader:
    """The header of a packet.

    Raises BadInput when it is cut off, damaged, of another format, or contradicts itself.
    """
    if len(packet) < HEADER_BYTES:
        raise BadInput(f"a video packet has at least {HEADER_BYTES} bytes, this one {len(packet)}")
    *fields, check = _HEADER.unpack_from(packet)
    number, index, count, flags, coder, down, right, scale, rows, columns, weights = fields
    if check != _check(packet):
        raise BadInput(
            f"packet {index} of picture {number} is damaged, or of another format than {FORMAT}: its "
            "checksum is wrong"
        )
    if flags // _FORMATS != FORMAT:
        raise BadInput(
            f"packet {index} of picture {number} has format {flags // _FORMATS}, and this decoder reads "
            f"{FORMAT}: use one version of kdn at both ends"
        )
    level, mix = divmod(coder, MIXES)
    if index >= count or scale >= NUM_SCALES or not rows or not columns:
        raise BadInput(f"packet {index} of picture {number} contradicts itself")
    intra, copies = bool(flags & _INTRA), 1 + flags % _FORMATS // _COPIES
    middle = down, right
    return PacketHeader(
        number, index, count, intra, level, mix, middle, scale, rows, columns, copies, weights
    )


def gather(
    packets: list[bytes], tables: CodecTables, groups: int, per_block: int, weights: int = 0
) -> Dealt:
    """Read the packets of one picture that have arrived; `per_block` units lie along a block's side.

    Raises BadInput for no packet, for a damaged one, for packets of different pictures, or of other
    weights than `weights`.
    """
    if not packets:
        raise BadInput("there is no packet to decode a picture from")
    headers = [read_header(packet) for packet in packets]
    first = headers[0]
    if any(
        replace(h, index=0, mix=0, middle=(0, 0), vector_scale=0) != _shared(first) for h in headers
    ):
        raise BadInput(f"packets of picture {first.number} do not belong together")
    check_weights(first, weights)
    grid = (groups, first.rows * per_block, first.columns * per_block)
    num_units = int(np.prod(grid))
    channels = tables.scales.shape[3]
    units, present = np.zeros((num_units, channels), np.int32), np.zeros(num_units, np.bool_)
    num_blocks = first.rows * first.columns
    vectors, there = np.zeros((num_blocks, 2), np.int8), np.zeros(num_blocks, np.bool_)
    for header, packet in zip(headers, packets, strict=True):
        own = np.nonzero(_owners(header.number, num_units, header.count) == header.index)[0]
        reader = BitReader(packet[HEADER_BYTES:])
        half = int(header.intra)
        classes = reader.heads(len(own), frequencies(tables.mixes[half, header.mix]))
        busy = own[classes > 0]
        units[busy] = reader.numbers(
            _scales(tables, half, grid, busy, _spread(classes, own, num_units))
        ).reshape(-1, channels)
        present[own] = True
        if not header.intra:
            blocks = _blocks(header.number, num_blocks, header.index, header.count, header.copies)
            scales = np.full(2 * len(blocks), header.vector_scale, np.uint8)
            read = reader.numbers(scales).reshape(-1, 2)
            vectors[blocks] = _added(read, _before(blocks, header.columns), header.middle)
            there[blocks] = True
    shape = (first.rows, first.columns)
    return Dealt(first, units, present, vectors.reshape(*shape, 2), there.reshape(shape))


def check_weights(header: PacketHeader, weights: int) -> None:
    """Raise BadInput when a packet was coded with other weights than `weights`."""
    if header.weights != weights:
        raise BadInput(
            f"picture {header.number} was coded with the weights {header.weights:04x}, and this decoder has "
            f"{weights:04x}: give both ends the same codec and the same file of weights"
        )


def _shared(header: PacketHeader) -> PacketHeader:
    return replace(header, index=0, mix=0, middle=(0, 0), vector_scale=0)


def _spread(
    classes: NDArray[np.int32], own: NDArray[np.int64], num_units: int
) -> NDArray[np.int32]:
    every = np.zeros(num_units, np.int32)
    every[own] = classes
    return every


def _pack(coded: Coded, tables: CodecTables, index: int, count: int) -> bytes:
    half = int(coded.intra)
    own = np.nonzero(_owners(coded.number, len(coded.units), count) == index)[0]
    classes = classes_of(coded.units)
    mix = _best_mix(classes[own], tables.mixes[half])
    busy = own[classes[own] > 0]
    numbers = coded.units[busy].reshape(-1)
    scales = _scales(tables, half, coded.grid, busy, classes)
    middle, vector_scale = (0, 0), 0
    rows, columns = coded.vectors.shape[:2]
    if not coded.intra:
        flat = coded.vectors.reshape(-1, 2)
        blocks = _blocks(coded.number, len(flat), index, count, coded.copies)
        middle, vector_scale, moved = _vector_model(flat[blocks], _before(blocks, columns))
        numbers = np.concatenate((numbers, moved))
        scales = np.concatenate((scales, np.full(len(moved), vector_scale, np.uint8)))
    body = encode(classes[own], frequencies(tables.mixes[half, mix]), numbers, scales)
    flags = half * _INTRA + (coded.copies - 1) * _COPIES + FORMAT * _FORMATS
    coder = coded.level * MIXES + mix
    fields = (coded.number, index, count, flags, coder, *middle, vector_scale, rows, columns)
    blank = _HEADER.pack(*fields, coded.weights, 0) + body
    return _HEADER.pack(*fields, coded.weights, _check(blank)) + body


def _check(packet: bytes) -> int:
    """A checksum over everything but itself."""
    return binascii.crc_hqx(packet[HEADER_BYTES:], binascii.crc_hqx(packet[: HEADER_BYTES - 2], 0))


def _scales(
    tables: CodecTables,
    half: int,
    grid: tuple[int, int, int],
    which: NDArray[np.int64],
    classes: NDArray[np.int32],
) -> NDArray[np.uint8]:
    """The scale of every number of the units `which`, in order."""
    group = which // (grid[1] * grid[2])
    return np.asarray(tables.scales[half, classes[which], group].reshape(-1))


def _blocks(number: int, num: int, index: int, count: int, copies: int) -> NDArray[np.int64]:
    """The blocks whose vectors go into packet `index`; copies lie as far apart as the packets allow."""
    behind = (index - _owners(~number, num, count)) % count
    return np.nonzero(np.isin(behind, np.arange(copies) * max(count // copies, 1)))[0]


def _best_mix(classes: NDArray[np.int32], mixes: NDArray[np.float64]) -> int:
    counts = np.bincount(classes, minlength=CLASSES)
    return int(np.argmin(-np.log2(mixes) @ counts))


def _vector_model(
    vectors: NDArray[np.int8], before: NDArray[np.int64]
) -> tuple[tuple[int, int], int, NDArray[np.int32]]:
    """The middle of the vectors; the differences, flat; and the scale whose table takes the fewest bits."""
    if not len(vectors):
        return (0, 0), 0, np.zeros(0, np.int32)
    down, right = (int(v) for v in np.median(vectors, axis=0))
    wide = np.concatenate((vectors.astype(np.int32), np.array([[down, right]], np.int32)))
    rest = (wide[:-1] - wide[before]).reshape(-1)
    costs = [cost_bits(rest, np.full(len(rest), s, np.uint8)) for s in range(NUM_SCALES)]
    return (down, right), int(np.argmin(costs)), rest


def _before(blocks: NDArray[np.int64], columns: int) -> NDArray[np.int64]:
    """The place in `blocks` of the nearest block earlier in the same packet; -1 for the first."""
    place = np.stack(np.divmod(blocks, columns), axis=1)
    far = np.abs(place[:, None] - place[None]).sum(2).astype(np.float64)
    far[np.triu_indices(len(blocks))] = np.inf
    nearest = far.argmin(1) if len(blocks) else np.zeros(0, np.int64)
    nearest[:1] = -1
    return np.asarray(nearest, np.int64)


def _added(
    differences: NDArray[np.int32], before: NDArray[np.int64], middle: tuple[int, int]
) -> NDArray[np.int8]:
    """The vectors again."""
    wide = np.concatenate((differences, np.array([middle], np.int32)))
    for index, earlier in enumerate(before):
        wide[index] += wide[earlier]
    return np.clip(wide[:-1], -127, 127).astype(np.int8)


@lru_cache(maxsize=64)
def _owners(number: int, num: int, count: int) -> NDArray[np.int64]:
    """Which packet each of `num` things goes into: a SplitMix64 hash of its place and the number."""
    step = np.uint64(0x9E3779B97F4A7C15)
    z = (np.arange(num, dtype=np.uint64) + np.uint64(1)) * step + np.uint64(
        (number & 0xFFFFFFFFFFFF) * 0xD1342543DE82EF95 & 0xFFFFFFFFFFFFFFFF
    )
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) % np.uint64(count)).astype(np.int64)
