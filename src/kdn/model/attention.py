"""Attention with explicit positions over KV that lies in two pieces: a shared prefix and an own suffix.

Two verbs for each layer: `place` rotates queries and keys and writes K and V where the sequence
holds them; `attend` reads them.  `TorchAttention` is the plain twin: any device, any dtype, nothing clever
but the blocks of 128 rows.  The compiled twin lives in `kdn.model.kernels`.

Layouts, chosen for the compiled twin: K [layers, kv heads, columns, dim] (rotated), V transposed to
[layers, kv heads, dim, columns].  Columns beyond those written are zero, never garbage.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention

from kdn.core import LayerKV
from kdn.model.linear import column_sum
from kdn.model.rope import rotate

__all__ = [
    "ROW_BLOCK",
    "Attention",
    "AttentionSlice",
    "BoundAttention",
    "FusedAttention",
    "Scaling",
    "TorchAttention",
    "Writing",
]

ROW_BLOCK = 128
"""Rows and columns are cut at absolute multiples of this: a row's result does not depend on the cut."""
_FEW = 16
"""Rows that a product has at least: libraries compute fewer than four in another order."""
_MIN_DIM = 32
"""Smaller heads are filled up with zeros: for so few values libraries choose by the number of rows."""


@dataclass(frozen=True)
class AttentionSlice:
    """One sequence's rows in a ragged batch, and where its KV lies.

    Rows [start, stop) of the batch stand at `positions` (ascending).  Columns [0, num_prefix) are in
    the prefix buffers, columns from num_prefix on in the suffix buffers (at column - num_prefix).
    """

    start: int
    stop: int
    positions: Tensor
    """[stop - start] int64, on the CPU."""
    suffix_k: Tensor
    suffix_v: Tensor
    prefix_k: Tensor | None = None
    prefix_v: Tensor | None = None
    num_prefix: int = 0


@dataclass(frozen=True)
class Scaling:
    """How some columns of one sequence are scaled at one layer, by query head."""

    columns: Tensor
    """[scaled] int64, ascending."""
    bias: Tensor
    """[scaled, heads] fp32, added to the scores."""
    gain: Tensor | None = None
    """[scaled, heads] fp32, multiplies what the softmax gives."""

    def within(self, low: int, high: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of columns [low, high): which, counted from `low`, and their bias and gain [heads, 1, scaled]."""
        inside = (self.columns >= low) & (self.columns < high)
        bias, gain = (x if x is None else x[inside].T[:, None] for x in (self.bias, self.gain))
        assert bias is not None, "there is always a bias"
        return self.columns[inside] - low, bias, gain


class BoundAttention(ABC):
    """Attention for one ragged batch, layer after layer."""

    @abstractmethod
    def place(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write the rows' K (rotated) and V into the suffixes; give back the rotated queries.

        q [rows, heads, dim]; k, v [rows, kv heads, dim], not rotated.  `q` may be overwritten.
        """

    @abstractmethod
    def attend(
        self,
        layer: int,
        q: Tensor,
        window: int | None,
        scalings: Sequence[Scaling | None] = (),
    ) -> Tensor:
        """[rows, heads * dim]: each row over the columns at or before its position.

        `window` limits a row to the last `window` columns, itself included.  `scalings`, one for each
        slice or none at all, scale columns; slices without one keep their bits.
        """


@dataclass(frozen=True)
class Writing:
    """One call of `Attention.write`, to be made together with others."""

    runs: Sequence[LayerKV]
    cos: Tensor
    sin: Tensor
    to_k: Tensor
    to_v: Tensor
    at: Tensor


class Attention(ABC):
    """Makes bound attention for a batch, and writes columns that come from elsewhere."""

    @abstractmethod
    def bind(self, slices: Sequence[AttentionSlice], cos: Tensor, sin: Tensor) -> BoundAttention:
        """`cos` and `sin` are fp32 [rows, dim]."""

    @abstractmethod
    def write(
        self,
        runs: Sequence[LayerKV],
        cos: Tensor,
        sin: Tensor,
        to_k: Tensor,
        to_v: Tensor,
        at: Tensor,
    ) -> None:
        """Write K (shifted and rotated on the way) and V of neighbouring runs to ascending columns `at`.

        `cos` and `sin` [tokens, dim] are for all tokens of the runs.  `to_k` [kv heads, columns, dim]
        and `to_v` [kv heads, dim, columns] are one layer's buffers.
        """

    def write_all(self, writings: Sequence[Writing]) -> None:
        """Many writes to different columns or buffers, in any order."""
        for one in writings:
            self.write(one.runs, one.cos, one.sin, one.to_k, one.to_v, one.at)

    @abstractmethod
    def mass(
        self, q: Tensor, positions: Tensor, part: AttentionSlice, layer: int, window: int | None
    ) -> Tensor:
        """[columns] fp32: weight that some rows put there, summed over rows and heads.

        q [rows, heads, dim] is rotated and stands at `positions`, ascending, none after the sequence's
        last row; the columns end with that row.
        """

    def mass_by_head(
        self, q: Tensor, positions: Tensor, part: AttentionSlice, layer: int, window: int | None
    ) -> Tensor:
        """[heads, columns] fp32: the same, summed over rows only. In plain torch."""
        return _weights(q, positions, part, layer, window).sum(dim=1)


class TorchAttention(Attention):
    """Plain torch: the reference, and what runs where there is no compiled kernel."""

    def bind(self, slices: Sequence[AttentionSlice], cos: Tensor, sin: Tensor) -> BoundAttention:
        return _BoundTorch(tuple(slices), cos, sin, gather_blocks, attend_blocks)

    def write(
        self,
        runs: Sequence[LayerKV],
        cos: Tensor,
        sin: Tensor,
        to_k: Tensor,
        to_v: Tensor,
        at: Tensor,
    ) -> None:
        columns = at.to(to_k.device)
        k = torch.cat([run.shifted().k.to(to_k.device) for run in runs])
        v = torch.cat([run.v.to(to_v.device) for run in runs])
        to_k.index_copy_(1, columns, rotate(k, cos, sin).transpose(0, 1))
        to_v.index_copy_(2, columns, v.permute(1, 2, 0))

    def mass(
        self, q: Tensor, positions: Tensor, part: AttentionSlice, layer: int, window: int | None
    ) -> Tensor:
        return _weights(q, positions, part, layer, window).sum(dim=(0, 1))


class FusedAttention(TorchAttention):
    """torch's own fused kernel over all rows of a sequence together: what runs on a GPU.

    Equal to the blocks within rounding, not bitwise.  Not yet measured on a GPU.
    """

    def bind(self, slices: Sequence[AttentionSlice], cos: Tensor, sin: Tensor) -> BoundAttention:
        return _BoundTorch(tuple(slices), cos, sin, gather_columns, _attend_fused)


class _Attend(Protocol):
    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor, window: int | None
    ) -> Tensor: ...


class _BoundTorch(BoundAttention):
    def __init__(
        self,
        slices: tuple[AttentionSlice, ...],
        cos: Tensor,
        sin: Tensor,
        gather: Callable[[AttentionSlice, int], tuple[Tensor, Tensor]],
        attend: _Attend,
    ) -> None:
        self._gather = gather
        self._attend_part = attend
        self._slices = slices
        self._cos = cos
        self._sin = sin

    def place(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k = rotate(k, self._cos, self._sin)
        for part in self._slices:
            rows = slice(part.start, part.stop)
            columns = (part.positions - part.num_prefix).to(k.device)
            part.suffix_k[layer].index_copy_(1, columns, k[rows].transpose(0, 1))
            part.suffix_v[layer].index_copy_(2, columns, v[rows].permute(1, 2, 0))
        return rotate(q, self._cos, self._sin)

    def attend(
        self,
        layer: int,
        q: Tensor,
        window: int | None,
        scalings: Sequence[Scaling | None] = (),
    ) -> Tensor:
        out = torch.empty_like(q)
        for part, scaling in itertools.zip_longest(self._slices, scalings):
            rows = slice(part.start, part.stop)
            if scaling is not None:
                k, v = gather_blocks(part, layer)
                out[rows] = attend_blocks(q[rows], k, v, part.positions, window, scaling)
                continue
            k, v = self._gather(part, layer)
            out[rows] = self._attend_part(q[rows], k, v, part.positions, window)
        return out.flatten(1)


def _weights(
    q: Tensor, positions: Tensor, part: AttentionSlice, layer: int, window: int | None
) -> Tensor:
    """[heads, rows, columns] fp32 attention weights of some rows of a sequence."""
    k = _gather_keys(part, layer)
    num_rows, num_heads, dim = q.shape
    grouped = q.transpose(0, 1).reshape(k.shape[0], -1, dim)
    scores = torch.bmm(grouped, k.transpose(1, 2)).float().mul_(dim**-0.5)
    scores = scores.view(num_heads, num_rows, k.shape[1])
    hidden = _mask(positions.to(q.device), 0, k.shape[1], window)
    return torch.softmax(scores.masked_fill_(hidden[None], float("-inf")), dim=-1)


def gather_columns(part: AttentionSlice, layer: int) -> tuple[Tensor, Tensor]:
    """K [kv heads, columns, dim] and V [kv heads, dim, columns] up to the sequence's last row."""
    own = int(part.positions[-1]) + 1 - part.num_prefix
    k, v = _gather_keys(part, layer), part.suffix_v[layer][:, :, :own]
    if part.prefix_v is None or not part.num_prefix:
        return k, v
    return k, torch.cat((part.prefix_v[layer][:, :, : part.num_prefix], v), dim=2)


def _gather_keys(part: AttentionSlice, layer: int) -> Tensor:
    k = part.suffix_k[layer][:, : int(part.positions[-1]) + 1 - part.num_prefix]
    if part.prefix_k is None or not part.num_prefix:
        return k
    return torch.cat((part.prefix_k[layer][:, : part.num_prefix], k), dim=1)


def gather_blocks(part: AttentionSlice, layer: int) -> tuple[Tensor, Tensor]:
    """As `gather_columns`, with zero columns after the last row's up to a multiple of ROW_BLOCK."""
    num_columns = (int(part.positions[-1]) // ROW_BLOCK + 1) * ROW_BLOCK
    own = num_columns - part.num_prefix
    if not part.num_prefix and own <= part.suffix_k.shape[2]:  # unused columns are zero already
        return part.suffix_k[layer][:, :own], part.suffix_v[layer][:, :, :own]
    k, v = gather_columns(part, layer)
    missing = num_columns - k.shape[1]
    return functional.pad(k, (0, 0, 0, missing)), functional.pad(v, (0, missing))


def row_cuts(positions: Tensor) -> list[tuple[int, int]]:
    """Index ranges of at most ROW_BLOCK rows; rows in a run are cut at multiples of ROW_BLOCK."""
    buckets = torch.div(positions, ROW_BLOCK, rounding_mode="floor")
    num_rows = positions.numel()
    if int(positions[-1]) - int(positions[0]) + 1 != num_rows:
        return [(a, min(a + ROW_BLOCK, num_rows)) for a in range(0, num_rows, ROW_BLOCK)]
    borders = (torch.nonzero(buckets[1:] != buckets[:-1]).flatten() + 1).tolist()
    edges = [0, *borders, num_rows]
    return list(itertools.pairwise(edges))


def attend_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    window: int | None,
    scaling: Scaling | None = None,
) -> Tensor:
    """[rows, heads, dim] from q [rows, heads, dim], k [kv heads, columns, dim], v [kv heads, dim, columns].

    A row sees the columns at or before its position.
    """
    out = torch.empty_like(q)
    for start, stop in row_cuts(positions):
        where = positions[start:stop]
        low, high = _columns_seen(where, window, k.shape[1])
        out[start:stop] = _attend_block(
            q[start:stop],
            k[:, low:high],
            v[:, :, low:high],
            _mask(where.to(q.device), low, high, window),
            None if scaling is None else scaling.within(low, high),
        )
    return out


def _columns_seen(where: Tensor, window: int | None, num_columns: int) -> tuple[int, int]:
    """Column range a block of rows reads, cut on multiples of ROW_BLOCK whichever rows are in it."""
    first, last = int(where[0]), int(where[-1])
    begin = first // ROW_BLOCK * ROW_BLOCK
    low = 0 if window is None else max(0, begin - window + 1) // ROW_BLOCK * ROW_BLOCK
    return low, min((last // ROW_BLOCK + 1) * ROW_BLOCK, num_columns)


def _mask(where: Tensor, low: int, high: int, window: int | None) -> Tensor:
    """[rows, columns] True where a row must not look."""
    columns = torch.arange(low, high, device=where.device)
    hidden = columns[None] > where[:, None]
    if window is not None:
        hidden |= columns[None] <= where[:, None] - window
    return hidden


def _attend_block(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    hidden: Tensor,
    scaled: tuple[Tensor, Tensor, Tensor | None] | None,
) -> Tensor:
    """One block of rows. Padded, since a product may round a row by the number of rows beside it."""
    num_rows, num_heads, dim = q.shape
    num_kv, num_columns = k.shape[0], k.shape[1]
    height = _height(num_rows, num_heads // num_kv)
    width = max(dim, _MIN_DIM)
    if width > dim:
        k, v = functional.pad(k, (0, width - dim)), functional.pad(v, (0, 0, 0, width - dim))
    rows = q.new_zeros((num_heads, height, width))
    rows[:, :num_rows, :dim] = q.transpose(0, 1)
    scores = torch.bmm(rows.view(num_kv, -1, width), k.transpose(1, 2)).view(
        num_heads, height, num_columns
    )
    wide = scores[:, :num_rows].float() * dim**-0.5
    columns, bias, gain = scaled or (None, None, None)
    if bias is not None:
        wide[:, :, columns] += bias
    weights = q.new_zeros((num_heads, height, num_columns))
    shares = torch.softmax(wide.masked_fill_(hidden[None], float("-inf")), dim=-1)
    if gain is not None:
        shares[:, :, columns] *= gain
    weights[:, :num_rows] = shares
    mixed = column_sum(weights.view(num_kv, -1, num_columns), v.transpose(1, 2))
    return mixed.view(num_heads, height, width)[:, :num_rows, :dim].transpose(0, 1)


def _height(num_rows: int, group: int) -> int:
    """Rows a block is filled up to; `group` query heads share a product. Few rows, as of a token with its
    guessed ones, take no whole block: products of at least `_FEW` rows were found to have a row's bits."""
    return max(-(-_FEW // group), 1 << (num_rows - 1).bit_length())


def _attend_fused(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, window: int | None) -> Tensor:
    """The same as `attend_blocks`; a whole prompt from position 0 needs no mask in memory."""
    num_rows, num_columns = q.shape[0], k.shape[1]
    whole = window is None and num_rows == num_columns
    mask = None if whole else ~_mask(positions.to(q.device), 0, num_columns, window)
    mixed = scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k[None],
        v.transpose(1, 2)[None],
        attn_mask=mask,
        is_causal=whole,
        enable_gqa=True,
    )
    return mixed[0].transpose(0, 1)
