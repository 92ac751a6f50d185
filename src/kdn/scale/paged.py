"""The paged KV cache of a foreign engine: where K and V of a token lie, read from the tensors.

The layout differs between versions and attention kernels, so nothing is assumed: the shape of each
tensor must fit exactly one known layout, or the engine is refused when it starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kdn.core import BLOCK_TOKENS, KvShape
from kdn.errors import BadInput
from kdn.machine.text import counted

__all__ = ["RUN_LAYOUT", "PagedKv", "PagedLayer", "PagedShape", "Scatter", "WriteOrder"]

RUN_LAYOUT = "k-then-v:tokens,heads,dim:rotated"
"""How a stored run lies, and that keys carry their rotary position; part of the fingerprint."""
Scatter = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""Writes K and V [tokens, heads, dim] to slots (block x block tokens + offset) of a layer's tensor."""
DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}


@dataclass(frozen=True)
class PagedShape:
    """What the engine says of its cache."""

    num_blocks: int
    block_tokens: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class PagedLayer:
    """K and V of one layer as views of the engine's tensor: each [blocks, heads, tokens, dim]."""

    k: Tensor
    v: Tensor

    @classmethod
    def read(cls, name: str, tensor: Tensor, shape: PagedShape) -> PagedLayer:
        """The views of a layer's tensor. Raises BadInput for a layout that is not known."""
        blocks, tokens = tensor.shape[0] if tensor.dim() else 0, shape.block_tokens
        heads, dim, size = shape.num_kv_heads, shape.head_dim, tuple(tensor.shape)
        if tensor.dtype not in DTYPES:
            raise BadInput(
                f"layer {name} caches {str(tensor.dtype).removeprefix('torch.')} values; kdn stores"
                " bfloat16, float16 and float32: leave the engine's kv_cache_dtype at auto"
            )
        if size == (blocks, heads, tokens, 2 * dim):  # packed: vLLM from 0.26
            return cls(tensor[..., :dim], tensor[..., dim:])
        if size == (blocks, tokens, 2 * dim) and heads == 1:  # one latent for all heads
            packed = tensor.unsqueeze(1)
            return cls(packed[..., :dim], packed[..., dim:])
        if size == (2, shape.num_blocks, tokens, heads, dim):
            return cls(*(half.transpose(1, 2) for half in tensor))
        if size == (blocks, 2, tokens, heads, dim):
            return cls(*(tensor[:, half].transpose(1, 2) for half in (0, 1)))
        raise BadInput(
            f"layer {name} has a KV tensor of {size}, which fits no layout that kdn knows for"
            f" {heads} heads of {dim} and blocks of {counted(tokens, 'token')}; run the engine without kdn's"
            " connector and report its version"
        )


class WriteOrder:
    """Keeps what another thread writes into a cache apart from what the engine's own thread computes.

    On a GPU each thread's work waits in a stream of its own, which knows nothing of the other's. On a CPU
    nothing waits.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None

    def mark(self) -> Callable[[], None]:
        """What comes back waits, in the thread that calls it, for all that this thread has asked for so far.

        The engine may still write into a block that it has given up, for a token that nobody wants.
        """
        if self._device is None:
            return lambda: None
        asked = torch.cuda.Event()  # type: ignore[no-untyped-call]
        asked.record(torch.cuda.current_stream(self._device))
        return asked.synchronize

    def finish(self) -> None:
        """Wait until what this thread wrote is in the cache."""
        if self._device is not None:
            torch.cuda.current_stream(self._device).synchronize()


class PagedKv:
    """All layers of an engine's paged cache, in order. Safe from several threads on disjoint blocks."""

    def __init__(
        self, tensors: Mapping[str, Tensor], shape: PagedShape, scatter: Scatter | None = None
    ) -> None:
        """`scatter` is the engine's own way to write tokens, for caches whose blocks are packed for its
        kernels: such blocks can be stored and loaded whole, but no token of them can be read.

        Raises BadInput for a layout or a dtype that kdn does not store, and for packed blocks that do not
        fill the store's.
        """
        if not tensors:
            raise BadInput("the engine has no KV cache tensors: kdn has nothing to store")
        if scatter is not None and BLOCK_TOKENS % shape.block_tokens:
            # a part of a packed block would be stored without the tokens that it depends on in its name
            raise BadInput(
                f"the engine packs blocks of {counted(shape.block_tokens, 'token')}, which do not fill the"
                f" store's blocks of {BLOCK_TOKENS}; set its block size to 16, 32, 64, 128 or 256"
            )
        self.layers = [PagedLayer.read(name, one, shape) for name, one in tensors.items()]
        self._tensors, self._scatter = list(tensors.values()), scatter
        self.block_tokens = shape.block_tokens
        first = self.layers[0].k
        self.shape = KvShape(
            len(self.layers), shape.num_kv_heads, shape.head_dim, DTYPES[first.dtype]
        )
        self.dtype, self.device = first.dtype, first.device

    def copy_blocks(self, blocks: Sequence[int]) -> CopiedBlocks:
        """The blocks as they are now, on the host; what the engine does to them later is not seen."""
        index = torch.tensor(blocks, device=self.device)
        kv = [
            (layer.k.index_select(0, index).cpu(), layer.v.index_select(0, index).cpu())
            for layer in self.layers
        ]
        return CopiedBlocks(kv, self.block_tokens)

    def write(self, layer: int, table: Sequence[int], start: int, k: Tensor, v: Tensor) -> None:
        """Put K and V [tokens, heads, dim] of the tokens from position `start` on into their blocks.

        `table[i]` is the block of the tokens from `i * block_tokens` on.
        """
        size = self.block_tokens
        into, at = self.layers[layer], 0
        while at < k.shape[0]:
            block, offset = divmod(start + at, size)
            stop = min(k.shape[0], at + size - offset)
            here = slice(offset, offset + stop - at)
            into.k[table[block], :, here] = k[at:stop].transpose(0, 1)
            into.v[table[block], :, here] = v[at:stop].transpose(0, 1)
            at = stop

    def write_tokens(
        self, layer: int, table: Sequence[int], start: int, k: Tensor, v: Tensor
    ) -> None:
        """As `write`, of K and V that were computed elsewhere and not copied from such a cache."""
        if self._scatter is None:
            self.write(layer, table, start, k, v)
            return
        positions = torch.arange(start, start + k.shape[0])
        blocks = torch.tensor(list(table))[positions // self.block_tokens]
        slots = blocks * self.block_tokens + positions % self.block_tokens
        self._scatter(self._tensors[layer], k, v, slots.to(self.device))


@dataclass(frozen=True)
class CopiedBlocks:
    """K and V of some blocks at every layer: each [blocks, heads, tokens, dim]."""

    kv: list[tuple[Tensor, Tensor]]
    block_tokens: int

    @cached_property
    def size_bytes(self) -> int:
        """Bytes of all layers."""
        return sum(half.nbytes for pair in self.kv for half in pair)

    def run(self, layer: int, start: int, stop: int) -> memoryview:
        """K, then V of the copied tokens [start, stop) at a layer: each [tokens, heads, dim]."""
        first, last = start // self.block_tokens, -(-stop // self.block_tokens)
        skip = first * self.block_tokens
        halves = []
        for half in self.kv[layer]:
            tokens = half[first:last].transpose(1, 2).flatten(0, 1)
            halves.append(tokens[start - skip : stop - skip])
        data: memoryview = torch.stack(halves).view(-1).view(torch.uint8).numpy().data
        return data
