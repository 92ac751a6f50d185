"""Format version 1 of a stored block: what the bytes mean, on disk and on the wire.

    0        magic, 8 bytes
    8        format version, u32 little-endian
    12       length H of the header, u32
    16       checksum of everything before the first run (but for itself) and of the block's key
    32       header: H bytes of MessagePack, then zeros up to a multiple of 4096: the body starts
    body     one run per layer, then the runs of the sections; each starts at a multiple of
             ALIGN from the body's start and is followed by zeros up to the next multiple:
             4096, or 64 where the codec compresses, since pages would eat what it saves

A run's checksum covers its bytes, the zeros after it, the block's key and which run it is: bytes
that were moved to another place or another block do not pass.  So every bit of the file is covered
by one checksum.  Offsets are not free: they must be the ones that follow from the lengths.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import msgspec
import numpy as np
import xxhash

from kdn.core import (
    BLOCK_TOKENS,
    BlockId,
    BlockKey,
    Cause,
    ChainHash,
    ColumnScale,
    Fingerprint,
    KvShape,
    Recipe,
)
from kdn.core.blocks import check_salt, pack_tokens, unpack_tokens
from kdn.errors import BadInput, CorruptBlock
from kdn.machine.memory import Bytes, allocate, bytes_of
from kdn.store.block.wire import (
    ALIGN,
    MAX_BLOCK_BYTES,
    MAX_HEADER_BYTES,
    MAX_POSITION,
    MAX_TEXT,
    ColumnSection,
    HiddenSection,
    Run,
    WireHeader,
    align_of,
    aligned,
    column_sections,
    complaint_of,
    lay_out,
    runs_of,
    sections_of,
)
from kdn.store.codecs import CODECS, Codec, NoCodec, RunForm

__all__ = [
    "ALIGN",
    "FORMAT_VERSION",
    "MAX_BLOCK_BYTES",
    "MAX_POSITION",
    "MAX_TEXT",
    "PREAMBLE_BYTES",
    "Block",
    "ColumnSection",
    "EncodedBlock",
    "Header",
    "HiddenSection",
    "Run",
    "decode_header",
    "encode_block",
    "header_bytes",
]


MAGIC = b"\x89KDN\r\n\x1a\n"
FORMAT_VERSION = 1
PREAMBLE = struct.Struct("<8sII16s")
PREAMBLE_BYTES = PREAMBLE.size
CHECKED_PREAMBLE_BYTES = PREAMBLE_BYTES - 16


@dataclass(frozen=True)
class Header:
    """What a stored block says of itself, checked."""

    id: BlockId
    shape: KvShape
    codec: str
    layers: tuple[Run, ...]
    hidden: tuple[HiddenSection, ...]
    columns: tuple[ColumnSection, ...]
    body_start: int
    """Where the body starts, counted from the start of the file."""
    align: int
    """Runs start at multiples of it, counted from the body's start."""

    @cached_property
    def size_bytes(self) -> int:
        """Length of the whole encoded block."""
        return self.body_start + max(run.stop(self.align) for run in runs_of(self))

    @property
    def run_bytes(self) -> int:
        """Length of one layer's run once decoded."""
        return self.id.num_tokens * self.shape.layer_token_bytes

    def layer_range(self, layer: int) -> tuple[int, int]:
        """Half-open range of the file that holds `layer` and the zeros after it."""
        run = self.layers[layer]
        return self.body_start + run.offset, self.body_start + run.stop(self.align)

    @property
    def sections_start(self) -> int:
        """Where the layers end and the sections begin, if there are any."""
        return self.body_start + self.layers[-1].stop(self.align)

    def check_sections(self, data: memoryview) -> None:
        """Verify `data`, all bytes from `sections_start` on. Raises CorruptBlock."""
        for kind, number, run in sections_of(self):
            start = self.body_start + run.offset - self.sections_start
            padded = data[start : self.body_start + run.stop(self.align) - self.sections_start]
            if _run_checksum(self.id.key, kind, number, padded) != run.checksum:
                raise CorruptBlock(f"block {self.id.key}: {kind} {number} fails its checksum")

    def hidden_section(self, layer: int) -> tuple[int, HiddenSection] | None:
        """The section that holds the layer's inputs, with its number; None where there is none."""
        for number, section in enumerate(self.hidden):
            if section.layer == layer:
                return number, section
        return None

    def hidden_states(
        self, layer: int, read: Callable[[int, int], memoryview]
    ) -> memoryview | None:
        """The layer's inputs [tokens, width], read by ranges of the file; None: they are not stored.

        Raises CorruptBlock when they are not what was written there.
        """
        found = self.hidden_section(layer)
        if found is None:
            return None
        number, section = found
        run = section.run
        padded = read(self.body_start + run.offset, self.body_start + run.stop(self.align))
        if _run_checksum(self.id.key, "hidden", number, padded) != run.checksum:
            raise CorruptBlock(f"block {self.id.key}: hidden {number} fails its checksum")
        return padded[: run.stored_bytes].toreadonly()

    def layer(self, layer: int, padded: memoryview, *, verify: bool = True) -> memoryview:
        """The run in `padded`, the bytes of `layer_range`, decoded.

        Raises CorruptBlock when they are not what was written there.
        """
        run = self.layers[layer]
        if verify and _run_checksum(self.id.key, "layer", layer, padded) != run.checksum:
            raise CorruptBlock(f"block {self.id.key}: layer {layer} fails its checksum")
        form = RunForm(self.shape, layer, self.id.num_tokens)
        return CODECS[self.codec].decode(padded[: run.stored_bytes], form)


@dataclass(frozen=True)
class EncodedBlock:
    """A block in its stored form. `data` is the whole of it and is not changed any more."""

    header: Header
    data: memoryview

    @property
    def key(self) -> BlockKey:
        return self.header.id.key

    @property
    def size_bytes(self) -> int:
        return self.data.nbytes


def encode_block(block: Block, codec: Codec | None = None) -> EncodedBlock:
    """The stored form of `block`.

    Raises BadInput for a lossy codec its recipe does not name, and for a block that no reader would take:
    what is written is never called damaged later.
    """
    codec = codec or NoCodec()
    check_salt(block.id.salt)
    if not codec.lossless and Cause.CODEC not in block.id.recipe.causes:
        raise BadInput(f"codec {codec.name} loses precision: the block's recipe must name it")
    forms = [RunForm(block.shape, n, block.id.num_tokens) for n in range(len(block.layers))]
    runs = [bytes_of(run) for run in block.layers]
    if codec.compresses:
        packed = (
            codec.encode(run.reshape(-1).data, form) for run, form in zip(runs, forms, strict=True)
        )
        runs = [bytes_of(run) for run in packed]
    align = align_of(codec)
    states = [bytes_of(run) for run in block.hidden.values()]
    wire = _wire(block, codec, lay_out([run.nbytes for run in (*runs, *states)], align))
    complaint = complaint_of(wire)
    if complaint is not None:
        raise BadInput(f"block {block.id.key} cannot be stored: {complaint}")
    # Checksums have one length, so a header without them tells where the body starts.
    body_start = aligned(PREAMBLE_BYTES + len(msgspec.msgpack.encode(wire)))
    data = allocate(body_start + max(run.stop(align) for run in runs_of(wire)), zeroed=False)
    data[:body_start] = bytes(body_start)

    def written(kind: str, number: int, run: Run, payload: Bytes) -> Run:
        padded = data[body_start + run.offset : body_start + run.stop(align)]
        np.frombuffer(padded, np.uint8, payload.nbytes).reshape(payload.shape)[...] = payload
        padded[payload.nbytes :] = bytes(padded.nbytes - payload.nbytes)
        checksum = _run_checksum(block.id.key, kind, number, padded)
        return msgspec.structs.replace(run, checksum=checksum)

    layers = zip(wire.layers, runs, strict=True)
    hidden = zip(wire.hidden, states, strict=True)
    wire = msgspec.structs.replace(
        wire,
        layers=tuple(written("layer", n, run, bits) for n, (run, bits) in enumerate(layers)),
        hidden=tuple(
            msgspec.structs.replace(section, run=written("hidden", n, section.run, bits))
            for n, (section, bits) in enumerate(hidden)
        ),
    )
    _write_header(data[:body_start], wire, block.id.key)
    return EncodedBlock(_header(wire, block.id, body_start, align), data.toreadonly())


def header_bytes(preamble: memoryview) -> int:
    """From the first PREAMBLE_BYTES: how many bytes of the file decode_header needs.

    Raises CorruptBlock when these are not the first bytes of a block of this format.
    """
    if preamble.nbytes < PREAMBLE_BYTES:
        raise CorruptBlock(
            f"a block begins with {PREAMBLE_BYTES} bytes, here are {preamble.nbytes}"
        )
    magic, version, length, _ = PREAMBLE.unpack(preamble[:PREAMBLE_BYTES])
    if magic != MAGIC:
        raise CorruptBlock("not a kdn block: it begins with other bytes")
    if version != FORMAT_VERSION:
        raise CorruptBlock(f"block format {version}, this kdn reads {FORMAT_VERSION}")
    if not 0 < length <= MAX_HEADER_BYTES:
        raise CorruptBlock(f"a header of {length} bytes, at most {MAX_HEADER_BYTES} are allowed")
    return aligned(PREAMBLE_BYTES + length)


def decode_header(region: memoryview, key: BlockKey, size_bytes: int) -> Header:
    """The header in the first `header_bytes` bytes of a block asked for as `key`.

    Raises CorruptBlock unless it is whole, belongs to that key and describes `size_bytes` bytes.
    """
    _, _, length, checksum = PREAMBLE.unpack(region[:PREAMBLE_BYTES])
    if _header_checksum(region, key) != checksum:
        raise CorruptBlock(f"block {key}: the header fails its checksum")
    try:
        body = region[PREAMBLE_BYTES : PREAMBLE_BYTES + length]
        wire = msgspec.msgpack.decode(body, type=WireHeader)
    except (
        msgspec.DecodeError,
        msgspec.ValidationError,
        UnicodeDecodeError,
        RecursionError,
    ) as error:
        raise CorruptBlock(f"block {key}: the header cannot be read: {error}") from error
    _check_bounds(wire, key)
    block_id = BlockId(
        Fingerprint(wire.fingerprint),
        Recipe(wire.causes, wire.detail),
        wire.salt,
        ChainHash(wire.behind),
        wire.start,
        unpack_tokens(wire.tokens),
    )
    header = _header(wire, block_id, region.nbytes, align_of(CODECS[wire.codec]))
    if block_id.key != key:
        raise CorruptBlock(f"asked for block {key}, found block {block_id.key} under that name")
    if header.size_bytes != size_bytes:
        raise CorruptBlock(f"block {key} has {size_bytes} bytes, its header {header.size_bytes}")
    return header


def _wire(block: Block, codec: Codec, runs: tuple[Run, ...]) -> WireHeader:
    layers, rest = runs[: block.shape.num_layers], runs[block.shape.num_layers :]
    token_values = block.id.num_tokens * block.shape.value_bytes
    return WireHeader(
        fingerprint=block.id.fingerprint,
        causes=block.id.recipe.causes,
        detail=block.id.recipe.detail,
        salt=block.id.salt,
        behind=block.id.after,
        start=block.id.start,
        tokens=pack_tokens(block.id.token_ids),
        num_layers=block.shape.num_layers,
        num_kv_heads=block.shape.num_kv_heads,
        head_dim=block.shape.head_dim,
        dtype=block.shape.dtype,
        codec=codec.name,
        layers=layers,
        columns=column_sections(block.columns),
        hidden=tuple(
            HiddenSection(layer, run.stored_bytes // token_values, block.shape.dtype, run)
            for layer, run in zip(block.hidden, rest, strict=True)
        ),
    )


def _header(wire: WireHeader, block_id: BlockId, body_start: int, align: int) -> Header:
    shape = KvShape(wire.num_layers, wire.num_kv_heads, wire.head_dim, wire.dtype)
    return Header(
        block_id, shape, wire.codec, wire.layers, wire.hidden, wire.columns, body_start, align
    )


def _write_header(region: memoryview, wire: WireHeader, key: BlockKey) -> None:
    packed = msgspec.msgpack.encode(wire)
    PREAMBLE.pack_into(region, 0, MAGIC, FORMAT_VERSION, len(packed), bytes(16))
    region[PREAMBLE_BYTES : PREAMBLE_BYTES + len(packed)] = packed
    region[CHECKED_PREAMBLE_BYTES:PREAMBLE_BYTES] = _header_checksum(region, key)


def _header_checksum(region: memoryview, key: BlockKey) -> bytes:
    state = xxhash.xxh3_128(f"kdn-header/{key}/".encode())
    state.update(region[:CHECKED_PREAMBLE_BYTES])
    state.update(region[PREAMBLE_BYTES:])
    return state.digest()


def _run_checksum(key: BlockKey, kind: str, number: int, padded: memoryview) -> bytes:
    state = xxhash.xxh3_128(f"kdn-run/{key}/{kind}/{number}/".encode())
    state.update(padded)
    return state.digest()


def _check_bounds(wire: WireHeader, key: BlockKey) -> None:
    """Raises CorruptBlock for a header that no writer of this format makes."""
    complaint = complaint_of(wire)
    if complaint is not None:
        raise CorruptBlock(f"block {key}: {complaint}")


@dataclass(frozen=True)
class Block:
    """A block with its bytes.

    `layers[l]` is one run: K [tokens, kv heads, head dim] without rotary position, then V of the
    same shape, both in `shape.dtype`, C order.  The bytes are copied when the block is stored, so
    the caller may reuse them afterwards.  `hidden` holds inputs of some layers, by layer: [tokens,
    width] in the same type.  Raises BadInput when the runs do not fit the shape.
    """

    id: BlockId
    shape: KvShape
    layers: tuple[memoryview | bytes, ...]
    columns: tuple[ColumnScale, ...] = ()
    """Columns that were steered when it was made, counted from its first token: readers steer them too."""
    hidden: Mapping[int, memoryview | bytes] = field(default_factory=dict)

    @property
    def raw_bytes(self) -> int:
        """Bytes of all runs, and of layer inputs."""
        states = sum(memoryview(run).nbytes for run in self.hidden.values())
        return self.id.num_tokens * self.shape.token_bytes + states

    def copy(self) -> Block:
        """The same block over bytes of its own."""
        hidden = {layer: bytes(run) for layer, run in self.hidden.items()}
        return replace(self, layers=tuple(map(bytes, self.layers)), hidden=hidden)

    def __post_init__(self) -> None:
        if not 1 <= self.id.num_tokens <= BLOCK_TOKENS:
            raise BadInput(
                f"a block holds 1 to {BLOCK_TOKENS} tokens, this one {self.id.num_tokens}: cut it"
            )
        if len(self.layers) != self.shape.num_layers:
            raise BadInput(
                f"a block of a model with {self.shape.num_layers} layers came with"
                f" {len(self.layers)} runs: give one run per layer"
            )
        wanted = self.id.num_tokens * self.shape.layer_token_bytes
        for number, run in enumerate(self.layers):
            if memoryview(run).nbytes != wanted:
                raise BadInput(
                    f"layer {number} of a block of {self.id.num_tokens} tokens has"
                    f" {memoryview(run).nbytes} bytes, not {wanted}: give K then V of every token"
                )
        for layer, run in self.hidden.items():
            size = memoryview(run).nbytes
            if not size or size % (self.id.num_tokens * self.shape.value_bytes):
                raise BadInput(
                    f"the inputs of layer {layer} have {size} bytes, which {self.id.num_tokens}"
                    " tokens do not share evenly: give one row for each token"
                )
