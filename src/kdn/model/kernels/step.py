"""Several layers in one call of compiled code: what a token costs beside its arithmetic."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from kdn.model.attention import BoundAttention
from kdn.model.config import ModelConfig
from kdn.model.decoder import DecoderLayer, FusedLayers, KvNote, LayerWeights
from kdn.model.grouped import GROUP
from kdn.model.kernels.attention import BoundKernel, BoundTables
from kdn.model.kernels.build import Kernels
from kdn.model.kernels.rows import SUMS, CompiledLinear, KernelNorm, LinearCall
from kdn.model.linear import Linear
from kdn.model.norm import RmsNorm

__all__ = ["KernelLayers"]

_SIDE = 32


class _Matrix(ctypes.Structure):
    _fields_ = (("call", LinearCall), ("form", ctypes.c_int64))


class _Layer(ctypes.Structure):
    _fields_ = (
        ("qkv", _Matrix),
        ("o", _Matrix),
        ("gate_up", _Matrix),
        ("down", _Matrix),
        ("input_norm", ctypes.c_void_p),
        ("post_norm", ctypes.c_void_p),
        ("q_norm", ctypes.c_void_p),
        ("k_norm", ctypes.c_void_p),
        ("input_eps", ctypes.c_float),
        ("post_eps", ctypes.c_float),
        ("q_eps", ctypes.c_float),
        ("k_eps", ctypes.c_float),
        ("window", ctypes.c_int64),
    )


class _Note(ctypes.Structure):
    _fields_ = (("to", ctypes.c_void_p), ("columns", ctypes.c_int64), ("rows", ctypes.c_int64))


_ROOM = ("normed", "fused", "q", "k", "turned", "attended", "between", "inner", "tiles")


class _Step(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.c_void_p),
        ("first", ctypes.c_int64),
        ("stop", ctypes.c_int64),
        ("hidden", ctypes.c_int64),
        ("call", ctypes.c_void_p),
        ("sequences", ctypes.c_void_p),
        ("num_sequences", ctypes.c_int64),
        ("prefix_groups", ctypes.c_void_p),
        ("num_prefix_groups", ctypes.c_int64),
        ("tasks", ctypes.c_void_p),
        ("notes", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in _ROOM),
        ("sums", ctypes.c_void_p),
    )


class KernelLayers(FusedLayers):
    """The layers of one model. Safe from several threads."""

    def __init__(
        self, library: Kernels, config: ModelConfig, layers: Sequence[DecoderLayer]
    ) -> None:
        """Every layer must be one that `of` takes."""
        self._handle = library.handle
        self._num_heads, self._hidden = config.num_heads, config.hidden_size
        q, kv, inner = config.q_size, config.kv_size, config.intermediate_size
        self._widths = (self._hidden, q + 2 * kv, q, kv, q, q, self._hidden, inner)
        """Values that a row takes of each part of the room."""
        self._widest = max(self._hidden, q, inner)
        values = sum(self._widths) + self._widest
        self.row_bytes = values * library.dtype.itemsize + 4.0 * SUMS * self._widest / GROUP
        self._held = layers
        """The table points into their weights."""
        self._table = (_Layer * len(layers))(*map(_described, layers))

    @staticmethod
    def of(
        library: Kernels, config: ModelConfig, layers: Sequence[DecoderLayer]
    ) -> KernelLayers | None:
        """None where a matrix or a norm is not compiled."""
        if not all(_is_compiled(layer.weights) for layer in layers):
            return None
        return KernelLayers(library, config, layers)

    def run(
        self,
        hidden: Tensor,
        bound: BoundAttention,
        notes: Sequence[KvNote | None],
        first: int,
        stop: int,
    ) -> Tensor | None:
        if not isinstance(bound, BoundKernel):
            return None
        rows, widths, widest = len(hidden), self._widths, self._widest
        tables = bound.tables(self._num_heads)
        room = torch.empty(
            rows * sum(widths) + -(-rows // _SIDE) * _SIDE * widest, dtype=hidden.dtype
        )
        sums = torch.empty(rows * max(widest // GROUP, 1) * SUMS)
        table = _noted(notes, tables)
        step = _Step(
            layers=ctypes.addressof(self._table),
            first=first,
            stop=stop,
            hidden=self._hidden,
            call=tables.call_at,
            sequences=tables.sequences_at,
            num_sequences=tables.num_sequences,
            prefix_groups=tables.groups_at,
            num_prefix_groups=tables.num_groups,
            tasks=tables.tasks_at,
            notes=ctypes.addressof(table),
            rows=rows,
            x=hidden.data_ptr(),
            sums=sums.data_ptr(),
        )
        at = room.data_ptr()
        for name, width in zip(_ROOM, (*widths, 0), strict=True):
            setattr(step, name, at)
            at += rows * width * room.element_size()
        self._handle.kdn_step(ctypes.byref(step))
        return hidden


def _noted(notes: Sequence[KvNote | None], tables: BoundTables) -> ctypes.Array[_Note]:
    table = (_Note * tables.num_sequences)()
    for row, number in zip(table, tables.given, strict=True):
        note = notes[number]
        if note is not None:
            buffer = note.to
            row.to = buffer.data_ptr() + note.column * buffer.stride(2) * buffer.element_size()
            row.columns, row.rows = buffer.shape[2], note.num_rows
    return table


def _is_compiled(weights: LayerWeights) -> bool:
    matrices = (weights.qkv, weights.o, weights.gate_up, weights.down)
    norms = [weights.input_norm, weights.post_norm]
    norms += [one for one in (weights.q_norm, weights.k_norm) if one is not None]
    return all(isinstance(one, CompiledLinear) for one in matrices) and all(
        isinstance(one, KernelNorm) for one in norms
    )


def _described(layer: DecoderLayer) -> _Layer:
    weights, row = layer.weights, _Layer(window=layer.window or 0)
    row.qkv, row.o = _matrix(weights.qkv), _matrix(weights.o)
    row.gate_up, row.down = _matrix(weights.gate_up), _matrix(weights.down)
    row.input_norm, row.input_eps = _norm(weights.input_norm)
    row.post_norm, row.post_eps = _norm(weights.post_norm)
    if weights.q_norm is not None and weights.k_norm is not None:
        row.q_norm, row.q_eps = _norm(weights.q_norm)
        row.k_norm, row.k_eps = _norm(weights.k_norm)
    return row


def _matrix(linear: Linear) -> _Matrix:
    assert isinstance(linear, CompiledLinear), "asked for by `of`"
    return _Matrix(linear.described(), linear.form)


def _norm(norm: RmsNorm) -> tuple[int, float]:
    assert isinstance(norm, KernelNorm), "asked for by `of`"
    return norm.described
