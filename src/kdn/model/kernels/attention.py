"""The compiled twin of `TorchAttention`: bf16 on CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kdn.core import LayerKV
from kdn.model.attention import Attention, AttentionSlice, BoundAttention, Writing
from kdn.model.kernels.build import Kernels

__all__ = ["KernelAttention"]


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
        ("tail_step", ctypes.c_int64),
        ("head_step", ctypes.c_int64),
    )


class _Flock(ctypes.Structure):
    _fields_ = (("lanes", ctypes.c_void_p), ("num_lanes", ctypes.c_int64))


class _Task(ctypes.Structure):
    _fields_ = (("flock", ctypes.c_void_p), ("kv_head", ctypes.c_int64), ("first", ctypes.c_int64))


class _Run(ctypes.Structure):
    _fields_ = (
        ("k", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        ("k_stride", ctypes.c_int64),
        ("v_stride", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("shift", ctypes.c_void_p),
    )


class _Write(ctypes.Structure):
    _fields_ = (
        ("runs", ctypes.c_void_p),
        ("num_runs", ctypes.c_int64),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
        ("at", ctypes.c_void_p),
        ("to_k", ctypes.c_void_p),
        ("to_v", ctypes.c_void_p),
        ("columns", ctypes.c_int64),
    )


class _Call(ctypes.Structure):
    _fields_ = (
        ("layer", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("dim", ctypes.c_int64),
        ("window", ctypes.c_int64),
        ("q", ctypes.c_void_p),
        ("k", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        ("q_stride", ctypes.c_int64),
        ("k_stride", ctypes.c_int64),
        ("v_stride", ctypes.c_int64),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("use_amx", ctypes.c_int64),
        ("threads", ctypes.c_int64),
    )


class KernelAttention(Attention):
    """Runs on the library's kernel, for what it `suits`."""

    def __init__(self, library: Kernels) -> None:
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

    def bind(self, lanes: Sequence[AttentionSlice], cos: Tensor, sin: Tensor) -> BoundAttention:
        return _BoundKernel(self._library, tuple(lanes), cos, sin)

    def write(
        self,
        runs: Sequence[LayerKV],
        cos: Tensor,
        sin: Tensor,
        to_k: Tensor,
        to_v: Tensor,
        at: Tensor,
    ) -> None:
        self.write_all([Writing(runs, cos, sin, to_k, to_v, at)])

    def write_all(self, writings: Sequence[Writing]) -> None:
        if not writings:
            return
        kept = [_as_rows(run) for one in writings for run in one.runs]
        runs = (_Run * len(kept))(*map(_described_run, kept))
        kv_heads, _, dim = writings[0].to_k.shape
        call = _Call(kv_heads=kv_heads, dim=dim, threads=torch.get_num_threads())
        table, at = [], ctypes.addressof(runs)
        for one in writings:
            table.append(_described_writing(one, at))
            at += len(one.runs) * ctypes.sizeof(_Run)
        self._library.handle.kdn_write(
            ctypes.byref(call), (_Write * len(table))(*table), ctypes.c_int64(len(table))
        )

    def mass(
        self, q: Tensor, positions: Tensor, lane: AttentionSlice, layer: int, window: int | None
    ) -> Tensor:
        q, width = _rows(q), int(lane.positions[-1]) + 1
        if not len(q):
            return torch.zeros(width)
        asking = replace(lane, start=0, stop=len(q), positions=positions.contiguous())
        table = (_Lane * 1)(_described(asking, asking.positions))
        flock = _flock_table(table, [[asking]])
        call = _Call(
            layer=layer,
            heads=q.shape[1],
            kv_heads=lane.tail_k.shape[1],
            dim=q.shape[2],
            window=window or 0,
            q=q.data_ptr(),
            q_stride=q.stride(0),
            use_amx=self._library.has_amx,
            threads=torch.get_num_threads(),
        )
        tasks = self._library.handle.kdn_num_tasks(flock, ctypes.c_int64(1), ctypes.byref(call))
        out = torch.empty((tasks, width))
        self._library.handle.kdn_mass(
            flock, ctypes.byref(call), ctypes.c_int64(width), ctypes.c_void_p(out.data_ptr())
        )
        return out.sum(dim=0)


def _described_writing(one: Writing, runs_at: int) -> _Write:
    return _Write(
        runs_at,
        len(one.runs),
        one.cos.data_ptr(),
        one.sin.data_ptr(),
        one.at.data_ptr(),
        one.to_k.data_ptr(),
        one.to_v.data_ptr(),
        one.to_k.shape[1],
    )


def _as_rows(run: LayerKV) -> LayerKV:
    shift = None if run.shift is None else run.shift.contiguous()
    return LayerKV(_rows(run.k), _rows(run.v), shift)


def _rows(x: Tensor) -> Tensor:
    """Rows may be strided; what is inside a row may not."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()


class _BoundKernel(BoundAttention):
    """Keeps the tables that the kernel reads, and the tensors that the tables point into."""

    def __init__(
        self, library: Kernels, lanes: tuple[AttentionSlice, ...], cos: Tensor, sin: Tensor
    ) -> None:
        self._handle = library.handle
        self._flocks = _flocks(lanes)
        lanes = tuple(lane for flock in self._flocks for lane in flock)
        self._lanes = lanes
        self._positions = [lane.positions.contiguous() for lane in lanes]
        self._cos, self._sin = cos.contiguous(), sin.contiguous()
        self._table = (_Lane * len(lanes))(*map(_described, lanes, self._positions))
        self._flock_table = _flock_table(self._table, self._flocks)
        self._call = _Call(
            kv_heads=lanes[0].tail_k.shape[1],
            dim=lanes[0].tail_k.shape[3],
            cos=self._cos.data_ptr(),
            sin=self._sin.data_ptr(),
            use_amx=library.has_amx,
            threads=torch.get_num_threads(),
        )
        self._tasks: ctypes.Array[_Task] | None = None

    def place(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = _rows(q), _rows(k), _rows(v)
        out = torch.empty(q.shape, dtype=q.dtype)
        call = self._call
        call.layer, call.heads = layer, q.shape[1]
        call.q, call.q_stride = q.data_ptr(), q.stride(0)
        call.k, call.k_stride = k.data_ptr(), k.stride(0)
        call.v, call.v_stride = v.data_ptr(), v.stride(0)
        call.out = out.data_ptr()
        self._handle.kdn_place(self._table, ctypes.c_int64(len(self._lanes)), ctypes.byref(call))
        return out

    def attend(self, layer: int, q: Tensor, window: int | None) -> Tensor:
        q = _rows(q)
        num_rows, heads, dim = q.shape
        out = torch.empty((num_rows, heads * dim), dtype=q.dtype)
        call, num_flocks = self._call, ctypes.c_int64(len(self._flocks))
        call.layer, call.heads, call.window = layer, heads, window or 0
        call.q, call.q_stride, call.out = q.data_ptr(), q.stride(0), out.data_ptr()
        if self._tasks is None:
            size = self._handle.kdn_num_tasks(self._flock_table, num_flocks, ctypes.byref(call))
            self._tasks = (_Task * size)()
        self._handle.kdn_attend(self._flock_table, num_flocks, ctypes.byref(call), self._tasks)
        return out


def _flocks(lanes: Sequence[AttentionSlice]) -> list[list[AttentionSlice]]:
    """Lanes of one row each that share a head stand together; every other lane stands alone."""
    alone: list[list[AttentionSlice]] = []
    together: dict[tuple[int, int], list[AttentionSlice]] = {}
    for lane in lanes:
        if lane.num_rows == 1 and lane.head_k is not None and lane.num_head:
            together.setdefault((lane.head_k.data_ptr(), lane.num_head), []).append(lane)
        else:
            alone.append([lane])
    return [*alone, *together.values()]


def _flock_table(
    table: ctypes.Array[_Lane], flocks: Sequence[Sequence[AttentionSlice]]
) -> ctypes.Array[_Flock]:
    made, at = [], ctypes.addressof(table)
    for flock in flocks:
        made.append(_Flock(at, len(flock)))
        at += len(flock) * ctypes.sizeof(_Lane)
    return (_Flock * len(made))(*made)


def _described_run(run: LayerKV) -> _Run:
    return _Run(
        run.k.data_ptr(),
        run.v.data_ptr(),
        run.k.stride(0),
        run.v.stride(0),
        run.num_tokens,
        None if run.shift is None else run.shift.data_ptr(),
    )


def _described(lane: AttentionSlice, positions: Tensor) -> _Lane:
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
        tail_step=lane.tail_k.stride(0),
        head_step=head_k.stride(0) if head_k is not None else 0,
    )
