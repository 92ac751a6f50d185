"""Where the KV of running sequences lives: shared prefixes, own suffixes.

    columns   0 ....... num_prefix | num_prefix ..... num_prefix + suffix columns
              prefix, read-only,   | suffix, grows in extents of 256 columns,
              one copy for all     | owned by one sequence
              sequences that       |
              begin with it        |

Layouts are those of `kdn.model.attention`: K [layers, kv heads, columns, dim], rotated;
V [layers, kv heads, dim, columns].
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

from kdn.core import (
    KvShape,
)
from kdn.engine.bias import ColumnBias
from kdn.machine.memory import allocate
from kdn.model import LoadedModel

__all__ = [
    "EXTENT",
    "PrefixKV",
    "PrefixPool",
    "ResidentStat",
    "SequenceKV",
    "SuffixKV",
    "extents",
    "kv_shape",
    "zeros",
]


EXTENT = 256
"""Columns a suffix grows by."""

_SKEW = 32
"""Unused columns after the last: rows of V whose distance is a power of two would crowd each
other out of the processor's caches."""
_PAD = 64
"""Kernels read whole tiles of columns: buffers are padded with zeros to a multiple of this."""


def extents(num_columns: int) -> int:
    """`num_columns` rounded up to whole extents."""
    return -(-num_columns // EXTENT) * EXTENT


def zeros(size: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """Zeros; on the CPU in pages that are made when first written, where `torch.zeros` writes twice."""
    if device != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    return torch.frombuffer(allocate(math.prod(size) * dtype.itemsize), dtype=dtype).view(size)


def kv_shape(model: LoadedModel) -> KvShape:
    """The shape of the model's KV in the type that it computes in."""
    decoder = model.decoder
    return decoder.config.kv_shape(str(decoder.dtype).removeprefix("torch."))


class PrefixKV:
    """Rotated KV of the first `num_columns` positions of some prompt. Filled once, layer by layer."""

    def __init__(
        self,
        name: str,
        num_columns: int,
        shape: KvShape,
        dtype: torch.dtype,
        device: str,
        *,
        one_layer: bool = False,
    ) -> None:
        """With `one_layer` each layer overwrites the one before: such a prefix serves one pass and is
        never complete."""
        padded = -(-num_columns // _PAD) * _PAD + _SKEW
        self.name = name
        self.num_columns = num_columns
        layers, heads, dim = shape.num_layers, shape.num_kv_heads, shape.head_dim
        held = 1 if one_layer else layers
        self.k = zeros((held, heads, padded, dim), dtype, device).expand(layers, -1, -1, -1)
        self.v = zeros((held, heads, dim, padded), dtype, device).expand(layers, -1, -1, -1)
        self._one_layer = one_layer
        self.num_layers_ready = 0
        self.users = 0

    @property
    def size_bytes(self) -> int:
        return self.k.untyped_storage().nbytes() + self.v.untyped_storage().nbytes()

    @property
    def is_complete(self) -> bool:
        return not self._one_layer and self.num_layers_ready == self.k.shape[0]

    def start_over(self) -> None:
        """The pass that filled it broke off: the next one begins at the first layer."""
        assert not self.is_complete, "a complete prefix is read-only"
        self.num_layers_ready = 0

    def layer_done(self, layer: int) -> None:
        """Note that `layer` is written; layers come in order."""
        assert layer == self.num_layers_ready, "a prefix is filled layer by layer"
        self.num_layers_ready += 1


@dataclass(frozen=True)
class ResidentStat:
    """Prefixes that lie where the engine reads them."""

    num_prefixes: int
    size_bytes: int
    num_hits: int
    """Requests that found theirs there since the start: nothing was loaded for them."""


class PrefixPool:
    """Prefixes by name, so that sequences that begin alike read one copy. Unused ones go first."""

    def __init__(self, idle_bytes: int) -> None:
        self._idle_bytes = idle_bytes
        self._prefixes: OrderedDict[str, PrefixKV] = OrderedDict()
        self._num_hits = 0

    def stat(self) -> ResidentStat:
        """From any thread, what is there now."""
        sizes = [one.size_bytes for one in list(self._prefixes.values()) if one.is_complete]
        return ResidentStat(len(sizes), sum(sizes), self._num_hits)

    def find(self, name: str) -> PrefixKV | None:
        """The prefix of that name, or None. One that is not complete yet is filled by the first of its
        users whose pass begins."""
        prefix = self._prefixes.get(name)
        if prefix is not None:
            self._prefixes.move_to_end(name)
        return prefix

    def hold(self, prefix: PrefixKV) -> None:
        """One more sequence uses the prefix."""
        self._num_hits += prefix.is_complete
        self._prefixes.setdefault(prefix.name, prefix)
        prefix.users += 1

    def release(self, prefix: PrefixKV) -> None:
        """One sequence fewer. A prefix that was never completed is forgotten immediately."""
        prefix.users -= 1
        unfinished = prefix.users == 0 and not prefix.is_complete
        if unfinished and self._prefixes.get(prefix.name) is prefix:
            del self._prefixes[prefix.name]
        self.shrink(self._idle_bytes)

    def shrink(self, idle_bytes: int) -> None:
        """Drop unused prefixes, oldest first, until at most `idle_bytes` of them remain."""
        idle = [prefix for prefix in self._prefixes.values() if prefix.users == 0]
        excess = sum(prefix.size_bytes for prefix in idle) - idle_bytes
        for prefix in idle:
            if excess <= 0:
                return
            del self._prefixes[prefix.name]
            excess -= prefix.size_bytes

    def check(self) -> None:
        """Audit the accounts. Raises AssertionError."""
        assert all(prefix.users >= 0 for prefix in self._prefixes.values()), (
            "a prefix was released twice"
        )


class SuffixKV:
    """A sequence's own columns."""

    def __init__(
        self,
        shape: KvShape,
        dtype: torch.dtype,
        device: str,
        num_columns: int,
        *,
        one_layer: bool = False,
    ) -> None:
        """With `one_layer` all layers lie in the same memory, and each overwrites the one before."""
        self._shape = shape
        self._held = 1 if one_layer else shape.num_layers
        self._dtype = dtype
        self._device = device
        self.k, self.v = self._allocate(extents(num_columns))
        self.num_columns = 0

    def _allocate(self, capacity: int) -> tuple[Tensor, Tensor]:
        layers, heads, dim = self._shape.num_layers, self._shape.num_kv_heads, self._shape.head_dim
        size = capacity + _SKEW
        k = zeros((self._held, heads, size, dim), self._dtype, self._device)
        v = zeros((self._held, heads, dim, size), self._dtype, self._device)
        return k.expand(layers, -1, -1, -1), v.expand(layers, -1, -1, -1)

    @property
    def capacity(self) -> int:
        return self.k.shape[2] - _SKEW

    @property
    def size_bytes(self) -> int:
        """What the columns take, however many layers share them."""
        return self.k.untyped_storage().nbytes() + self.v.untyped_storage().nbytes()

    def grow(self, num_columns: int) -> None:
        """Memory for `num_columns` in all. What is written stays."""
        if num_columns <= self.capacity:
            return
        k, v = self._allocate(extents(num_columns))
        k[:, :, : self.k.shape[2]] = self.k
        v[:, :, :, : self.v.shape[3]] = self.v
        self.k, self.v = k, v


@dataclass
class SequenceKV:
    """All the KV a running sequence reads."""

    suffix: SuffixKV
    prefix: PrefixKV | None = None
    num_prefix: int = 0
    bias: ColumnBias | None = None
    """What the plan adds to the scores of columns; decoded rows see it too."""

    @property
    def num_columns(self) -> int:
        return self.num_prefix + self.suffix.num_columns
