"""Reading one block: a layer at a time, each verified before a caller sees it, or all of it together."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, Self

from kdn.core import BlockId, BlockKey, ColumnScale, KvShape
from kdn.errors import CorruptBlock
from kdn.store.block.format import (
    MAX_BLOCK_BYTES,
    PREAMBLE_BYTES,
    EncodedBlock,
    Header,
    decode_header,
    header_bytes,
)
from kdn.store.block.wire import scales_within

if TYPE_CHECKING:
    from kdn.store.block.format import Header

__all__ = [
    "BytesHandle",
    "Handle",
    "Load",
    "Reader",
    "StoreLoad",
    "Take",
    "check_whole",
    "read_header",
    "read_whole",
]


Take = Callable[[int, memoryview], None]
"""Is given a range by its number, and its bytes."""


class Handle(ABC):
    """One encoded block, held open.

    `buffer` has the block's length; only what was read is filled.  `header` is there where the tier
    has it in memory, checked.
    """

    buffer: memoryview
    header: Header | None = None
    moved_bytes: int | None = None
    """What was moved for all reads so far, where that is not what was asked for."""

    @abstractmethod
    def read(self, start: int, stop: int) -> memoryview:
        """Bytes [start, stop) of the block: a view into `buffer`, valid after close.

        Raises CorruptBlock when the tier cannot give them, LostBlock when it is the tier that
        failed and not the block. Safe from several threads.
        """

    def read_each(self, ranges: Sequence[tuple[int, int]], then: Take) -> None:
        """Read ranges that follow each other, and give each to `then` with its number.

        Raises as `read`, and what `then` raises. `then` may be called from several threads.
        """
        data, begin = self.read(ranges[0][0], ranges[-1][1]), ranges[0][0]
        for number, (start, stop) in enumerate(ranges):
            then(number, data[start - begin : stop - begin])

    def is_read(self, start: int, stop: int) -> bool:
        """Were these bytes read already, as part of something larger?"""
        return False

    @property
    def at_once(self) -> int:
        """How many blocks of its tier are best read side by side just now."""
        return 1

    @abstractmethod
    def close(self) -> None:
        """Give back what the handle holds. May be called twice."""


class BytesHandle(Handle):
    """A block that is in memory already."""

    def __init__(self, data: memoryview, header: Header | None = None) -> None:
        self.buffer = data
        self.header = header

    def read(self, start: int, stop: int) -> memoryview:
        return self.buffer[start:stop]

    def close(self) -> None:
        return


FIRST_READ_BYTES = 4096


def read_header(handle: Handle, key: BlockKey) -> Header:
    """The checked header of the block that was opened as `key`. Raises CorruptBlock."""
    if handle.header is not None:
        return handle.header
    size_bytes = handle.buffer.nbytes
    first = handle.read(0, min(FIRST_READ_BYTES, size_bytes))
    wanted = header_bytes(first[:PREAMBLE_BYTES])
    if wanted > size_bytes:
        raise CorruptBlock(f"block {key} ends inside its header")
    region = first if wanted == first.nbytes else handle.read(0, wanted)
    return decode_header(region, key, size_bytes)


def check_whole(key: BlockKey, data: memoryview) -> EncodedBlock:
    """The block called `key` that `data` is. Raises CorruptBlock when it is anything else."""
    return read_whole(key, BytesHandle(data))


def read_whole(key: BlockKey, handle: Handle) -> EncodedBlock:
    """All of the block that was opened as `key`, verified. Raises CorruptBlock."""
    if handle.buffer.nbytes > MAX_BLOCK_BYTES:
        raise CorruptBlock(f"block {key}: {handle.buffer.nbytes} bytes are no block")
    header = read_header(handle, key)
    data = handle.read(0, header.size_bytes).toreadonly()
    for layer in range(header.shape.num_layers):
        start, stop = header.layer_range(layer)
        header.layer(layer, data[start:stop])
    if header.sections_start < header.size_bytes:
        header.check_sections(data[header.sections_start :])
    return EncodedBlock(header, data)


class Load(Protocol):
    """A block on its way to a reader: its layers, from wherever and in whichever encoding they come."""

    header: Header
    tier: str
    """The name of the tier that the bytes come from."""
    may_transcode: bool
    """May layers come in another encoding than the stored one?"""

    @property
    def at_once(self) -> int:
        """How many blocks of its tier are best read side by side just now."""

    def layers(self, start: int, stop: int) -> list[memoryview]:
        """The decoded runs of layers [start, stop). Raises CorruptBlock."""

    def hidden(self, layer: int) -> memoryview | None:
        """The layer's inputs [tokens, width]; None where they are not stored. Raises CorruptBlock."""


class StoreLoad:
    """A block on its way out of a tier, shared by all that read it meanwhile: each layer comes once.

    `on_whole` is told when every layer has come, `on_corrupt` when one was damaged (once).
    """

    may_transcode = False

    def __init__(
        self,
        header: Header,
        handle: Handle,
        tier: str,
        *,
        trusted: bool,
        on_whole: Callable[[EncodedBlock], None] | None = None,
        on_corrupt: Callable[[CorruptBlock], None] | None = None,
    ) -> None:
        self.header = header
        self.tier = tier
        self.readers = 0
        """How many readers share it; counted by the store."""
        self._handle = handle
        self._trusted = trusted
        self._on_whole = on_whole
        self._on_corrupt = on_corrupt
        self._lock = threading.Lock()
        self._came: dict[int, memoryview] = {}
        self._damage: CorruptBlock | None = None
        self.is_left_out = False
        """Did a reader take a smaller encoding? Then what is missing is not worth fetching now."""

    def layers(self, start: int, stop: int) -> list[memoryview]:
        """The runs of layers [start, stop). Neighbours that have not come yet are read together.

        Raises CorruptBlock, then and ever after, when one is not what was written.
        """
        if any(layer not in self._came for layer in range(start, stop)):
            with self._lock:
                self._bring(start, stop)
        return [self._came[layer] for layer in range(start, stop)]

    def hidden(self, layer: int) -> memoryview | None:
        """The layer's inputs, each time read and verified; None where they are not stored.

        Raises CorruptBlock, then and ever after, when they are not what was written.
        """
        with self._lock:
            if self._damage is not None:
                raise self._damage
            try:
                return self.header.hidden_states(layer, self._section)
            except CorruptBlock as error:
                self._damage = error
                if self._on_corrupt is not None:
                    self._on_corrupt(error)
                raise

    @property
    def at_once(self) -> int:
        return self._handle.at_once

    @property
    def is_half_way(self) -> bool:
        """Has something come, but not all, and no damage?"""
        some = 0 < len(self._came) < self.header.shape.num_layers
        return some and self._damage is None and not self.is_left_out

    def is_read(self, start: int, stop: int) -> bool:
        """Would layers [start, stop) come without reading anything more?"""
        missing = [layer for layer in range(start, stop) if layer not in self._came]
        return all(self._handle.is_read(*self.header.layer_range(n)) for n in missing)

    def finish(self) -> None:
        """Bring what is left, and close it."""
        with suppress(CorruptBlock):  # counted where it was met
            self.layers(0, self.header.shape.num_layers)
        self.close()

    def close(self) -> None:
        """No reader is left."""
        self._handle.close()

    def _bring(self, start: int, stop: int) -> None:
        if self._damage is not None:
            raise self._damage
        missing = [layer for layer in range(start, stop) if layer not in self._came]
        try:
            for first, last in _neighbours(missing):
                self._read(first, last)
            whole = bool(missing) and len(self._came) == self.header.shape.num_layers
            if whole:
                self._read_sections()
        except CorruptBlock as error:
            self._damage = error
            if self._on_corrupt is not None:
                self._on_corrupt(error)
            raise
        if whole:
            self._handle.close()
            if self._on_whole is not None:
                self._on_whole(EncodedBlock(self.header, self._handle.buffer.toreadonly()))

    def _read(self, first: int, last: int) -> None:
        def take(number: int, padded: memoryview) -> None:
            layer, verify = first + number, not self._trusted
            self._came[layer] = self.header.layer(layer, padded.toreadonly(), verify=verify)

        layers = range(first, last + 1)
        self._handle.read_each([self.header.layer_range(layer) for layer in layers], take)

    def _section(self, start: int, stop: int) -> memoryview:
        """Bytes of a section; those of a block that came whole are here."""
        if len(self._came) == self.header.shape.num_layers:
            return self._handle.buffer[start:stop]
        return self._handle.read(start, stop)

    def _read_sections(self) -> None:
        """What moves to another tier moves whole."""
        start, stop = self.header.sections_start, self.header.size_bytes
        if start < stop:
            data = self._handle.read(start, stop)
            if not self._trusted:
                self.header.check_sections(data)


class Reader:
    """A stored block, open for reading and pinned until closed. Use it in a `with`.

    A run that was handed out stays valid after close.  Safe from several threads.
    """

    def __init__(self, load: Load, num_tokens: int, on_close: Callable[[], None]) -> None:
        self._load = load
        self._on_close: Callable[[], None] | None = on_close
        self.num_tokens = num_tokens
        """How many of the block's tokens are wanted, counted from its first."""

    @property
    def id(self) -> BlockId:
        return self._load.header.id

    @property
    def shape(self) -> KvShape:
        return self._load.header.shape

    @property
    def tier(self) -> str:
        """Where the bytes come from."""
        return self._load.tier

    @property
    def scales(self) -> tuple[ColumnScale, ...]:
        """Columns of the wanted tokens that were steered when the block was made, at their positions.

        Moves no bytes.
        """
        stop = self.id.start + self.num_tokens
        within = (
            replace(one, columns=tuple(column for column in one.columns if column < stop))
            for one in scales_within(self._load.header.columns, self.id.start)
        )
        return tuple(one for one in within if one.columns)

    @property
    def at_once(self) -> int:
        """How many blocks of its tier are best read side by side just now."""
        return self._load.at_once

    @property
    def is_delivered(self) -> bool:
        """May layers come in another encoding than the stored one?"""
        return self._load.may_transcode

    def layer(self, layer: int) -> memoryview:
        """The whole run of `layer`, read-only: K [id.num_tokens, kv heads, head dim], then V.

        Raises CorruptBlock when it is damaged; the store has by then put the block out of use.
        """
        return self.layers(layer, layer + 1)[0]

    def layers(self, start: int, stop: int) -> list[memoryview]:
        """The runs of layers [start, stop), in one read where they are not in memory."""
        assert self._on_close is not None, "this reader was closed"
        return self._load.layers(start, stop)

    def holds_hidden(self, layer: int) -> bool:
        """Are the inputs of `layer` stored? Moves no bytes."""
        return self._load.header.hidden_section(layer) is not None

    def hidden(self, layer: int) -> memoryview | None:
        """The inputs of `layer` for the first `num_tokens` tokens, [tokens, width]; None: not stored.

        Raises CorruptBlock as `layer` does.
        """
        assert self._on_close is not None, "this reader was closed"
        run = self._load.hidden(layer)
        return None if run is None else run[: run.nbytes // self.id.num_tokens * self.num_tokens]

    def parts(self, layer: int) -> tuple[memoryview, memoryview]:
        """K and V of the first `num_tokens` tokens at `layer`: each [tokens, kv heads, dim]."""
        run = self.layer(layer)
        half = run.nbytes // 2
        wanted = half // self.id.num_tokens * self.num_tokens
        return run[:wanted], run[half : half + wanted]

    def close(self) -> None:
        """Unpin the block. May be called twice."""
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _neighbours(layers: list[int]) -> list[tuple[int, int]]:
    """Ascending numbers as closed ranges without gaps."""
    ranges: list[tuple[int, int]] = []
    for layer in layers:
        if ranges and ranges[-1][1] == layer - 1:
            ranges[-1] = (ranges[-1][0], layer)
        else:
            ranges.append((layer, layer))
    return ranges
