"""A paged cache such as vLLM's, filled with numbers that tell which token they belong to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdn.core import Fingerprint
from kdn.scale.counts import TransferCounts
from kdn.scale.paged import PagedKv, PagedShape
from kdn.scale.planner import PromptFacts, ScheduledRequest, TransferPlanner
from kdn.scale.transfers import Transfers
from kdn.store import MemoryTier, Store
from kdn.trace import NoTrace

HEADS, DIM, LAYERS, SIZE = 2, 4, 3, 128
PRINT = Fingerprint("vllm's")


def fingerprint(_adapter: str | None, generation: str) -> Fingerprint:
    """That of every adapter, and of weights that came later."""
    return Fingerprint(f"{PRINT} {generation}") if generation else PRINT


def prints(adapter: str | None, generation: str) -> list[Fingerprint]:
    """Those of the only rank."""
    return [fingerprint(adapter, generation)]


def paged(num_blocks: int = 16, dtype: torch.dtype = torch.float32) -> PagedKv:
    """An empty cache in vLLM's packed layout."""
    shape = PagedShape(num_blocks, SIZE, HEADS, DIM)
    tensors = {
        f"layer.{n}": torch.zeros(num_blocks, HEADS, SIZE, 2 * DIM, dtype=dtype)
        for n in range(LAYERS)
    }
    return PagedKv(tensors, shape)


def kv(layer: int, half: int, token_ids: Sequence[int], start: int) -> Tensor:
    """What a prefill would give for the tokens from `start` on: [tokens, heads, dim]."""
    tokens = torch.tensor(token_ids[start:], dtype=torch.float32)
    positions = torch.arange(start, len(token_ids), dtype=torch.float32)
    named = 10 * tokens + 10_000 * positions + 3 * layer + half
    return named[:, None, None] + torch.arange(HEADS * DIM).view(HEADS, DIM) / 16


def _places(table: Sequence[int], start: int, stop: int) -> tuple[Tensor, Tensor]:
    positions = torch.arange(start, stop)
    return torch.tensor(list(table))[positions // SIZE], positions % SIZE


def compute(cache: PagedKv, token_ids: Sequence[int], table: Sequence[int], start: int = 0) -> None:
    """Write the KV of tokens from `start` on."""
    blocks, offsets = _places(table, start, len(token_ids))
    for number, layer in enumerate(cache.layers):
        layer.k[blocks, :, offsets] = kv(number, 0, token_ids, start)
        layer.v[blocks, :, offsets] = kv(number, 1, token_ids, start)


def holds(cache: PagedKv, token_ids: Sequence[int], table: Sequence[int], start: int = 0) -> bool:
    """Is the KV of all tokens from `start` on what a prefill gives?"""
    blocks, offsets = _places(table, start, len(token_ids))
    return all(
        torch.equal(layer.k[blocks, :, offsets], kv(number, 0, token_ids, start))
        and torch.equal(layer.v[blocks, :, offsets], kv(number, 1, token_ids, start))
        for number, layer in enumerate(cache.layers)
    )


class Rig:
    """A planner and transfers over one store in memory, as one engine has them."""

    def __init__(self, store: Store | None = None, *, queue_bytes: int = 1 << 29) -> None:
        self.store = store or Store([MemoryTier(1 << 26, NoTrace())])
        self.counts = TransferCounts()
        self.cache = paged()
        self.planner = TransferPlanner(self.store, SIZE, prints, self.counts)
        self.transfers = Transfers(
            self.store, self.cache, fingerprint, self.counts, queue_bytes=queue_bytes
        )

    def prefill(self, name: str, token_ids: Sequence[int], table: Sequence[int]) -> int:
        """Serve a prompt as an engine would; how many tokens came from the store."""
        self.planner.follow(PromptFacts(name, len(token_ids)), token_ids)
        found = self.planner.matched(name, 0)
        self.planner.allocated(name, found, table)
        for task in self.planner.step([]).loads:
            self.transfers.load(task)
            ended = self.transfers.take_finished(60)
            assert ended.request_ids == {name}
            lost = [number for number, block in enumerate(table) if block in ended.failed_blocks]
            found = min([found, *(number * SIZE for number in lost)])
        compute(self.cache, token_ids, table, found)
        self.save(name, table, found, len(token_ids) - found)
        return found

    def save(self, name: str, table: Sequence[int], computed: int, scheduled: int) -> None:
        """One step of the engine, with what it saves."""
        plan = self.planner.step([ScheduledRequest(name, computed, scheduled, lambda: table)])
        for task in plan.saves:
            self.transfers.save(task)
        assert self.transfers.flush(60)
