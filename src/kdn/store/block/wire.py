"""A block's header on the wire, the only places its runs may lie at, and the bounds on what it claims."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import msgspec

from kdn.core import BLOCK_TOKENS, Cause, ColumnScale
from kdn.core.blocks import TOKEN_BYTES, pack_tokens, unpack_tokens
from kdn.core.names import VEILED
from kdn.store.codecs import CODECS, Codec

__all__ = [
    "ALIGN",
    "MAX_BLOCK_BYTES",
    "MAX_HEADER_BYTES",
    "MAX_POSITION",
    "MAX_RUN_BYTES",
    "MAX_TEXT",
    "ColumnSection",
    "HiddenSection",
    "Run",
    "WireHeader",
    "align_of",
    "aligned",
    "column_sections",
    "complaint_of",
    "lay_out",
    "runs_of",
    "scales_within",
    "sections_of",
]

ALIGN = 4096
PACKED_ALIGN = 64

# Bounds on what a header may claim, far above any real model, so that a crafted one cannot make
# the reader allocate without limit.
MAX_HEADER_BYTES = 1 << 20
MAX_LAYERS = 4096
MAX_RUN_BYTES = 1 << 28
MAX_BLOCK_BYTES = 1 << 32
MAX_TEXT = 4096
MAX_POSITION = 1 << 40
VALUE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


class Run(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where stored bytes lie: `offset` from the body's start, how many, and their checksum."""

    offset: int
    stored_bytes: int
    checksum: bytes

    def stop(self, align: int) -> int:
        """Where the zeros after the run end."""
        return aligned(self.offset + self.stored_bytes, align)


class HiddenSection(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Hidden states that enter `layer`: [tokens, width] in `dtype`, never through a codec."""

    layer: int
    width: int
    dtype: str
    run: Run


class ColumnSection(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Columns steered at `layer`, u32 each, counted from the block's first token, ascending.

    It lies in the header, so that a plan knows them before any layer is read.
    """

    layer: int
    columns: bytes
    factor: float
    heads: tuple[int, ...] | None = None
    literal: bool = False


class WireHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The fields of a stored block's header, as MessagePack has them."""

    fingerprint: str
    causes: tuple[Cause, ...]
    detail: str
    salt: str
    behind: str
    start: int
    tokens: bytes
    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    codec: str
    layers: tuple[Run, ...]
    hidden: tuple[HiddenSection, ...] = ()
    columns: tuple[ColumnSection, ...] = ()


class _Laid(Protocol):
    """What has runs: a header on the wire, or a checked one."""

    @property
    def layers(self) -> tuple[Run, ...]: ...
    @property
    def hidden(self) -> tuple[HiddenSection, ...]: ...


def column_sections(scales: Sequence[ColumnScale]) -> tuple[ColumnSection, ...]:
    """The scales of a block, whose columns count from its first token, as they are stored."""
    return tuple(
        ColumnSection(s.layer, pack_tokens(sorted(s.columns)), s.factor, s.heads, s.literal)
        for s in scales
    )


def scales_within(sections: Sequence[ColumnSection], start: int) -> tuple[ColumnScale, ...]:
    """Stored columns of a block that begins at position `start`, as scales of a plan."""
    return tuple(
        ColumnScale(
            one.layer,
            tuple(start + column for column in unpack_tokens(one.columns)),
            one.factor,
            one.heads,
            one.literal,
        )
        for one in sections
    )


def aligned(size: int, align: int = ALIGN) -> int:
    """The next multiple of `align` from `size` on."""
    return -(-size // align) * align


def align_of(codec: Codec) -> int:
    """What runs of that codec are aligned to."""
    return PACKED_ALIGN if codec.compresses else ALIGN


def lay_out(sizes: list[int], align: int) -> tuple[Run, ...]:
    """The only places runs of these sizes may lie at."""
    runs, offset = [], 0
    for size in sizes:
        runs.append(Run(offset, size, bytes(16)))
        offset = runs[-1].stop(align)
    return tuple(runs)


def runs_of(header: _Laid) -> list[Run]:
    """Every run, layers first."""
    return [*header.layers, *(run for _, _, run in sections_of(header))]


def sections_of(header: _Laid) -> list[tuple[str, int, Run]]:
    """Every section's kind, number and run."""
    return [("hidden", number, section.run) for number, section in enumerate(header.hidden)]


def complaint_of(wire: WireHeader) -> str | None:
    """What no writer of this format writes; None for a header that is sound."""
    num_tokens, rest = divmod(len(wire.tokens), TOKEN_BYTES)
    runs = runs_of(wire)
    sound = {
        "tokens": rest == 0 and 1 <= num_tokens <= BLOCK_TOKENS,
        "dtype": wire.dtype in VALUE_BYTES,
        "codec": wire.codec in CODECS,
        "recipe": wire.codec in CODECS
        and (CODECS[wire.codec].lossless or Cause.CODEC in wire.causes),
        "layer count": 1 <= wire.num_layers <= MAX_LAYERS,
        "number of runs": len(wire.layers) == wire.num_layers,
        "number of sections": len(wire.hidden) + len(wire.columns) <= 2 * wire.num_layers,
        "texts": max(map(len, (wire.fingerprint, wire.detail, wire.salt, wire.behind))) <= MAX_TEXT,
        "salt": not wire.salt.startswith(VEILED),
        "start": 0 <= wire.start <= MAX_POSITION,
        "shape": min(wire.num_kv_heads, wire.head_dim) >= 1,
        "checksums": all(len(run.checksum) == 16 for run in runs),
        "run sizes": all(0 < run.stored_bytes <= MAX_RUN_BYTES for run in runs),
    }
    for name, fine in sound.items():
        if not fine:
            return f"its header has an impossible {name}"
    values = num_tokens * 2 * wire.num_kv_heads * wire.head_dim
    if values * VALUE_BYTES[wire.dtype] > MAX_RUN_BYTES:
        return f"its layers would take over {MAX_RUN_BYTES} bytes each"
    offset, align = 0, align_of(CODECS[wire.codec])
    for run in runs:
        if run.offset != offset:
            return "its runs do not follow each other"
        offset = run.stop(align)
    return _section_complaint(wire, num_tokens)


def _section_complaint(wire: WireHeader, num_tokens: int) -> str | None:
    for section in wire.hidden:
        if not 0 <= section.layer <= wire.num_layers or section.dtype not in VALUE_BYTES:
            return "its hidden states name an impossible layer or dtype"
        if section.run.stored_bytes != num_tokens * section.width * VALUE_BYTES[section.dtype]:
            return "its hidden states do not fit their width"
    for steered in wire.columns:
        whole, factor = len(steered.columns) % TOKEN_BYTES == 0, steered.factor
        if not (0 <= steered.layer < wire.num_layers and whole and 0 < factor < math.inf):
            return "its columns name an impossible layer, size or factor"
        columns = unpack_tokens(steered.columns)
        if any(a >= b for a, b in pairwise(columns)) or max(columns, default=0) >= num_tokens:
            return "its columns do not ascend within its tokens"
    return None
