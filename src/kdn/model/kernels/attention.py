"""The compiled twin of `TorchAttention`: bf16 on CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from kdn.model.attention import Attention, AttentionLane, BoundAttention
from kdn.model.kernels.build import Library

__all__ = ["KernelAttention"]

_TILES = 4 * 16
"""Queries in one task of the kernel."""


class _Lane(ctypes.Structure):
    _fields_ = (
        ("start", ctypes.c_int64),
        ("num_rows", ctypes.c_int64),
        ("positions", ctypes.c_void_p),
        ("tail_k", ctypes.c_void_p),
        ("tail_v", ctypes.c_void_p),
        ("head_k", ctypes.c_void_p),
        ("head_v", ctypes.c_void_p),
        ("num_head", ctypes.c_int64),
        ("tail_columns", ctypes.c_int64),
        ("head_columns", ctypes.c_int64),
    )


class _Task(ctypes.Structure):
    _fields_ = (("lane", ctypes.c_void_p), ("kv_head", ctypes.c_int64), ("first", ctypes.c_int64))


class _Call(ctypes.Structure):
    _fields_ = (
        ("layer", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("dim", ctypes.c_int64),
        ("window", ctypes.c_int64),
        ("q", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("q_stride", ctypes.c_int64),
        ("use_amx", ctypes.c_int),
    )


class KernelAttention(Attention):
    """Runs on the library's kernel. Refuses what it was not made for when it is bound."""

    def __init__(self, library: Library) -> None:
        self._library = library

    @staticmethod
    def suits(dtype: torch.dtype, device: torch.device | str, head_dim: int) -> bool:
        """True for what the kernel can run."""
        return (
            dtype == torch.bfloat16
            and str(device) == "cpu"
            and head_dim % 64 == 0
            and head_dim <= 256
        )

    def bind(self, lanes: Sequence[AttentionLane], cos: Tensor, sin: Tensor) -> BoundAttention:
        return _BoundKernel(self._library, tuple(lanes), cos, sin)

    def write(
        self, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, to_k: Tensor, to_v: Tensor, at: Tensor
    ) -> None:
        _write(self._library.handle, k, v, cos, sin, to_k, to_v, at)


def _write(
    handle: ctypes.CDLL,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    to_k: Tensor,
    to_v: Tensor,
    at: Tensor,
) -> None:
    rows, kv_heads, dim = k.shape
    k, v = _rows(k), _rows(v)
    handle.kdn_write(
        ctypes.c_void_p(k.data_ptr()),
        ctypes.c_int64(k.stride(0)),
        ctypes.c_void_p(v.data_ptr()),
        ctypes.c_int64(v.stride(0)),
        ctypes.c_void_p(cos.data_ptr()),
        ctypes.c_void_p(sin.data_ptr()),
        ctypes.c_void_p(at.data_ptr()),
        ctypes.c_int64(rows),
        ctypes.c_int64(kv_heads),
        ctypes.c_int64(dim),
        ctypes.c_void_p(to_k.data_ptr()),
        ctypes.c_void_p(to_v.data_ptr()),
        ctypes.c_int64(to_k.shape[1]),
        ctypes.c_int(torch.get_num_threads()),
    )


def _rows(x: Tensor) -> Tensor:
    """Rows may be strided; what is inside a row may not."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()


class _BoundKernel(BoundAttention):
    def __init__(
        self, library: Library, lanes: tuple[AttentionLane, ...], cos: Tensor, sin: Tensor
    ) -> None:
        self._handle = library.handle
        self._use_amx = library.level == 2
        self._lanes = lanes
        self._cos, self._sin = cos.contiguous(), sin.contiguous()
        self._positions = [lane.positions.contiguous() for lane in lanes]
        self._at = [lane.positions - lane.num_head for lane in lanes]
        self._table = (_Lane * len(lanes))(*map(_described, lanes, self._positions))

    def place(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        for lane, at in zip(self._lanes, self._at, strict=True):
            rows = slice(lane.start, lane.stop)
            to_k, to_v = lane.tail_k[layer], lane.tail_v[layer]
            _write(self._handle, k[rows], v[rows], self._cos[rows], self._sin[rows], to_k, to_v, at)
        q = _rows(q)
        out = torch.empty(q.shape, dtype=q.dtype)
        self._handle.kdn_turn(
            ctypes.c_void_p(q.data_ptr()),
            ctypes.c_int64(q.stride(0)),
            ctypes.c_void_p(self._cos.data_ptr()),
            ctypes.c_void_p(self._sin.data_ptr()),
            ctypes.c_int64(q.shape[0]),
            ctypes.c_int64(q.shape[1]),
            ctypes.c_int64(q.shape[2]),
            ctypes.c_void_p(out.data_ptr()),
            ctypes.c_int(torch.get_num_threads()),
        )
        return out

    def attend(self, layer: int, q: Tensor, window: int | None) -> Tensor:
        q = _rows(q)
        num_rows, heads, dim = q.shape
        kv_heads = self._lanes[0].tail_k.shape[1]
        out = torch.empty((num_rows, heads * dim), dtype=q.dtype)
        call = _Call(
            layer,
            heads,
            kv_heads,
            dim,
            window or 0,
            q.data_ptr(),
            out.data_ptr(),
            q.stride(0),
            self._use_amx,
        )
        group = heads // kv_heads
        num_tasks = sum(-(-lane.num_rows * group // _TILES) for lane in self._lanes) * kv_heads
        tasks = (_Task * num_tasks)()
        self._handle.kdn_attend(
            self._table,
            ctypes.c_int64(len(self._lanes)),
            ctypes.byref(call),
            tasks,
            ctypes.c_int(torch.get_num_threads()),
        )
        return out


def _described(lane: AttentionLane, positions: Tensor) -> _Lane:
    head_k, head_v = lane.head_k, lane.head_v
    return _Lane(
        start=lane.start,
        num_rows=lane.num_rows,
        positions=positions.data_ptr(),
        tail_k=lane.tail_k.data_ptr(),
        tail_v=lane.tail_v.data_ptr(),
        head_k=head_k.data_ptr() if head_k is not None else None,
        head_v=head_v.data_ptr() if head_v is not None else None,
        num_head=lane.num_head,
        tail_columns=lane.tail_k.shape[2],
        head_columns=head_k.shape[2] if head_k is not None else 0,
    )
