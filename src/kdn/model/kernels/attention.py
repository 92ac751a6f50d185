"""The compiled twin of `TorchAttention`: bf16 or fp32 on the CPU, whichever the library computes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kdn.core import LayerKV
from kdn.model.attention import (
    Attention,
    AttentionSlice,
    BoundAttention,
    Scaling,
    TorchAttention,
    Writing,
)
from kdn.model.kernels.build import Kernels

__all__ = ["BoundKernel", "BoundTables", "KernelAttention"]

_DIM_STEPS = {torch.bfloat16: 64, torch.float32: 16}
"""Heads are multiples of this wide."""
_MAX_DIM = 256


class _Sequence(ctypes.Structure):
    _fields_ = (
        ("start", ctypes.c_int64),
        ("num_rows", ctypes.c_int64),
        ("positions", ctypes.c_void_p),
        ("suffix_k", ctypes.c_void_p),
        ("suffix_v", ctypes.c_void_p),
        ("prefix_k", ctypes.c_void_p),
        ("prefix_v", ctypes.c_void_p),
        ("num_prefix", ctypes.c_int64),
        ("tail_columns", ctypes.c_int64),
        ("head_columns", ctypes.c_int64),
        ("tail_step", ctypes.c_int64),
        ("head_step", ctypes.c_int64),
        ("num_scaled", ctypes.c_int64),
        ("scaled_at", ctypes.c_void_p),
        ("bias_of", ctypes.c_void_p),
        ("gain_of", ctypes.c_void_p),
    )


class _PrefixGroup(ctypes.Structure):
    _fields_ = (("slices", ctypes.c_void_p), ("num_sequences", ctypes.c_int64))


class _Task(ctypes.Structure):
    _fields_ = (
        ("prefix_group", ctypes.c_void_p),
        ("kv_head", ctypes.c_int64),
        ("first", ctypes.c_int64),
        ("most", ctypes.c_int64),
    )


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
        self.dtype = library.dtype
        """Of q, K and V."""

    @staticmethod
    def suits(
        library: Kernels, dtype: torch.dtype, device: torch.device | str, head_dim: int
    ) -> bool:
        """True for what the library can run."""
        whole = head_dim % _DIM_STEPS[library.dtype] == 0 and head_dim <= _MAX_DIM
        return dtype == library.dtype and str(device) == "cpu" and whole

    def bind(self, slices: Sequence[AttentionSlice], cos: Tensor, sin: Tensor) -> BoundAttention:
        return BoundKernel(self._library, tuple(slices), cos, sin)

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
        self, q: Tensor, positions: Tensor, part: AttentionSlice, layer: int, window: int | None
    ) -> Tensor:
        if self.dtype == torch.float32:
            return TorchAttention().mass(q, positions, part, layer, window)
        q, width = _rows(q), int(part.positions[-1]) + 1
        if not len(q):
            return torch.zeros(width)
        asking = replace(part, start=0, stop=len(q), positions=positions.contiguous())
        table = (_Sequence * 1)(_described(asking, asking.positions))
        prefix_group = _group_table(table, [[asking]])
        call = _Call(
            layer=layer,
            heads=q.shape[1],
            kv_heads=part.suffix_k.shape[1],
            dim=q.shape[2],
            window=window or 0,
            q=q.data_ptr(),
            q_stride=q.stride(0),
            use_amx=self._library.has_amx,
            threads=torch.get_num_threads(),
        )
        tasks = self._library.handle.kdn_num_tasks(
            prefix_group, ctypes.c_int64(1), ctypes.byref(call)
        )
        out = torch.empty((tasks, width))
        self._library.handle.kdn_mass(
            prefix_group, ctypes.byref(call), ctypes.c_int64(width), ctypes.c_void_p(out.data_ptr())
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
    if run.shift is None and _is_rows(run.k) and _is_rows(run.v):
        return run
    shift = None if run.shift is None else run.shift.contiguous()
    return LayerKV(_rows(run.k), _rows(run.v), shift)


def _rows(x: Tensor) -> Tensor:
    """Rows may be strided; what is inside a row may not."""
    return x if _is_rows(x) else x.contiguous()


def _is_rows(x: Tensor) -> bool:
    _, heads, values = x.stride()
    return values == 1 and heads == x.shape[2]


@dataclass(frozen=True)
class BoundTables:
    """What a kernel over all layers is told of a batch; it lives as long as what was bound."""

    call_at: int
    sequences_at: int
    num_sequences: int
    groups_at: int
    num_groups: int
    tasks_at: int
    given: Sequence[int]
    """By sequence of the table, its number among those that were bound."""


class BoundKernel(BoundAttention):
    """Holds the tables that the kernel reads, and the tensors that the tables point into."""

    def __init__(
        self, library: Kernels, slices: tuple[AttentionSlice, ...], cos: Tensor, sin: Tensor
    ) -> None:
        self._handle = library.handle
        self._prefix_groups = _prefix_groups(slices)
        given = {id(part): number for number, part in enumerate(slices)}
        slices = tuple(part for prefix_group in self._prefix_groups for part in prefix_group)
        self._slices = slices
        self._given = [given[id(part)] for part in slices]
        """By slice, its number among those that were bound."""
        self._positions = [part.positions.contiguous() for part in slices]
        self._cos, self._sin = cos.contiguous(), sin.contiguous()
        self._table = (_Sequence * len(slices))(*map(_described, slices, self._positions))
        self._group_table = _group_table(self._table, self._prefix_groups)
        self._call = _Call(
            kv_heads=slices[0].suffix_k.shape[1],
            dim=slices[0].suffix_k.shape[3],
            cos=self._cos.data_ptr(),
            sin=self._sin.data_ptr(),
            use_amx=library.has_amx,
        )
        self._tasks: ctypes.Array[_Task] | None = None

    def place(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = _rows(q), _rows(k), _rows(v)
        out = torch.empty(q.shape, dtype=q.dtype)
        call = self._call_now()
        call.layer, call.heads = layer, q.shape[1]
        call.q, call.q_stride = q.data_ptr(), q.stride(0)
        call.k, call.k_stride = k.data_ptr(), k.stride(0)
        call.v, call.v_stride = v.data_ptr(), v.stride(0)
        call.out = out.data_ptr()
        self._handle.kdn_place(self._table, ctypes.c_int64(len(self._slices)), ctypes.byref(call))
        return out

    def attend(
        self,
        layer: int,
        q: Tensor,
        window: int | None,
        scalings: Sequence[Scaling | None] = (),
    ) -> Tensor:
        q = _rows(q)
        held = self._set_scalings(scalings, q.shape[2]) if scalings else []
        num_rows, heads, dim = q.shape
        out = torch.empty((num_rows, heads * dim), dtype=q.dtype)
        call, num_prefix_groups = self._call_now(), ctypes.c_int64(len(self._prefix_groups))
        call.layer, call.heads, call.window = layer, heads, window or 0
        call.q, call.q_stride, call.out = q.data_ptr(), q.stride(0), out.data_ptr()
        self._handle.kdn_attend(
            self._group_table, num_prefix_groups, ctypes.byref(call), self._task_room()
        )
        if held:
            self._clear_scalings()
        return out

    def _call_now(self) -> _Call:
        """On as many threads as the caller has now: they may change between the layers of a pass."""
        self._call.threads = torch.get_num_threads()
        return self._call

    def _task_room(self) -> ctypes.Array[_Task]:
        if self._tasks is None:
            num_prefix_groups = ctypes.c_int64(len(self._prefix_groups))
            size = self._handle.kdn_num_tasks(
                self._group_table, num_prefix_groups, ctypes.byref(self._call)
            )
            self._tasks = (_Task * size)()
        return self._tasks

    def tables(self, heads: int) -> BoundTables:
        """For a kernel that walks over all layers, none of whose columns is scaled."""
        self._call_now().heads = heads
        return BoundTables(
            ctypes.addressof(self._call),
            ctypes.addressof(self._table),
            len(self._slices),
            ctypes.addressof(self._group_table),
            len(self._prefix_groups),
            ctypes.addressof(self._task_room()),
            self._given,
        )

    def _set_scalings(self, scalings: Sequence[Scaling | None], dim: int) -> list[Tensor]:
        """Enter the layer's scaled columns into the table. Gives back the tensors that it points into."""
        held: list[Tensor] = []
        for row, number in zip(self._table, self._given, strict=True):
            scaling = scalings[number]
            if scaling is not None:
                bias = (scaling.bias * dim**0.5).contiguous()  # the kernel scales scores last
                row.num_scaled = scaling.columns.numel()
                row.scaled_at, row.bias_of = scaling.columns.data_ptr(), bias.data_ptr()
                held += [scaling.columns, bias]
                if scaling.gain is not None:
                    gain = scaling.gain.contiguous()
                    row.gain_of = gain.data_ptr()
                    held.append(gain)
        return held

    def _clear_scalings(self) -> None:
        for row in self._table:
            row.num_scaled, row.gain_of = 0, None


def _prefix_groups(slices: Sequence[AttentionSlice]) -> list[list[AttentionSlice]]:
    """Sequences of one row each that share a prefix stand together; every other one stands alone."""
    alone: list[list[AttentionSlice]] = []
    together: dict[tuple[int, int], list[AttentionSlice]] = {}
    for part in slices:
        if part.stop - part.start == 1 and part.prefix_k is not None and part.num_prefix:
            together.setdefault((part.prefix_k.data_ptr(), part.num_prefix), []).append(part)
        else:
            alone.append([part])
    return [*alone, *together.values()]


def _group_table(
    table: ctypes.Array[_Sequence], prefix_groups: Sequence[Sequence[AttentionSlice]]
) -> ctypes.Array[_PrefixGroup]:
    made, at = [], ctypes.addressof(table)
    for prefix_group in prefix_groups:
        made.append(_PrefixGroup(at, len(prefix_group)))
        at += len(prefix_group) * ctypes.sizeof(_Sequence)
    return (_PrefixGroup * len(made))(*made)


def _described_run(run: LayerKV) -> _Run:
    return _Run(
        run.k.data_ptr(),
        run.v.data_ptr(),
        run.k.stride(0),
        run.v.stride(0),
        run.num_tokens,
        None if run.shift is None else run.shift.data_ptr(),
    )


def _described(part: AttentionSlice, positions: Tensor) -> _Sequence:
    prefix_k, prefix_v = part.prefix_k, part.prefix_v
    return _Sequence(
        start=part.start,
        num_rows=part.stop - part.start,
        positions=positions.data_ptr(),
        suffix_k=part.suffix_k.data_ptr(),
        suffix_v=part.suffix_v.data_ptr(),
        prefix_k=prefix_k.data_ptr() if prefix_k is not None else None,
        prefix_v=prefix_v.data_ptr() if prefix_v is not None else None,
        num_prefix=part.num_prefix,
        tail_columns=part.suffix_k.shape[2],
        head_columns=prefix_k.shape[2] if prefix_k is not None else 0,
        tail_step=part.suffix_k.stride(0),
        head_step=prefix_k.stride(0) if prefix_k is not None else 0,
    )
