"""Where the reused text lies in a prompt: the input of rules that choose rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["BlendLayout"]


@dataclass(frozen=True)
class BlendLayout:
    """Positions of a prompt by how their KV is obtained.

    0 ..... num_prefix | chunks and what lies between ......... asking | num_tokens
    exact, free        | stored chunks, partly recomputed; the rest is computed
    """

    num_tokens: int
    num_prefix: int
    """Exact KV from the first position on: never computed, never chosen."""
    chunks: tuple[tuple[int, int], ...]
    """Half-open ranges whose KV was computed elsewhere, ascending and disjoint."""
    asking: int
    """From here on stands what the answer depends on most: the instruction and the question."""

    def __post_init__(self) -> None:
        edges = [self.num_prefix, *(edge for chunk in self.chunks for edge in chunk)]
        assert edges == sorted(edges), "chunks ascend after the prefix"
        assert edges[-1] <= self.asking < self.num_tokens, "the question is never reused"

    @cached_property
    def reused(self) -> Tensor:
        """[reused] int64: the positions that stored chunks cover."""
        ranges = [torch.arange(start, stop) for start, stop in self.chunks]
        return torch.cat(ranges) if ranges else torch.empty(0, dtype=torch.int64)

    @cached_property
    def forced(self) -> Tensor:
        """[forced] int64: the positions that must be computed, since nothing is stored for them."""
        wanted = torch.ones(self.num_tokens, dtype=torch.bool)
        wanted[: self.num_prefix] = False
        wanted[self.reused] = False
        return torch.nonzero(wanted).flatten()

    @property
    def num_reused(self) -> int:
        return sum(stop - start for start, stop in self.chunks)

    def budget(self, ratio: float) -> int:
        """How many reused rows a ratio in 0..1 recomputes, rounded up."""
        return min(self.num_reused, -int(-ratio * self.num_reused // 1))

    def with_forced(self, chosen: Tensor) -> tuple[int, ...]:
        """The chosen positions and all that must be computed, ascending."""
        return tuple(torch.cat((chosen, self.forced)).sort().values.tolist())
