"""Exact prefix reuse: what a prompt begins with, if it was ever computed, is not computed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from kdn.core import (
    BLOCK_TOKENS,
    EXACT,
    BlockId,
    Fingerprint,
    KeptKV,
    KvShape,
    Plan,
    Planned,
    Request,
    chain_hash,
    chain_hashes,
)
from kdn.reuse.source import StoreSource
from kdn.store import (
    Block,
    BlockHit,
    EstimateS,
    Match,
    Reader,
    Store,
    cut_blocks,
    worth_loading,
)

__all__ = ["PrefixReuse"]


class PrefixReuse:
    """Plans with the longest stored prefix, and stores what is worth keeping.

    The last prompt token is always computed: its logits are the answer's beginning.
    """

    def __init__(
        self,
        store: Store,
        shape: KvShape,
        fingerprint: Callable[[str | None], Fingerprint],
        estimate_s: EstimateS | None = None,
    ) -> None:
        """`fingerprint` names the model with an adapter (or None) on it.

        With `estimate_s` blocks that would come too slowly are computed instead.
        """
        self._estimate_s = estimate_s
        self._store = store
        self._shape = shape
        self._fingerprint = fingerprint
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kdn-load")

    def cached_tokens(self, request: Request) -> int:
        return self._match(request).num_tokens

    def plan(self, request: Request) -> Planned:
        token_ids = request.prompt.token_ids
        fingerprint = self._fingerprint(request.adapter)
        opened = self._open(self._match(request).hits)
        if not opened:
            return Planned(Plan(token_ids))
        readers = [reader for _, reader in opened]
        num_tokens = sum(reader.num_tokens for reader in readers)
        name = f"{fingerprint}/{request.salt}/{chain_hash(token_ids[:num_tokens])}"
        source = StoreSource(name, readers, self._shape, self._loader)
        tiers: dict[str, int] = {}
        for reader in readers:
            tiers[reader.tier] = tiers.get(reader.tier, 0) + reader.num_tokens
        return Planned(Plan(token_ids, prefix=source), exact=num_tokens, tiers=tiers)

    def keep(self, request: Request, kept: KeptKV) -> None:
        for block in self._blocks(request, kept):
            self._store.put_behind(block)

    def close(self) -> None:
        """Stop reading ahead."""
        self._loader.shutdown(wait=True, cancel_futures=True)

    def _match(self, request: Request) -> Match:
        """What is stored of the prompt and worth loading."""
        token_ids = request.prompt.token_ids
        fingerprint = self._fingerprint(request.adapter)
        match = self._store.match(fingerprint, EXACT, request.salt, token_ids[:-1])
        if self._estimate_s is None:
            return match
        speed = self._store.links.bytes_per_s
        return worth_loading(
            match, len(token_ids), self._shape.token_bytes, speed, self._estimate_s
        )

    def _open(self, hits: tuple[BlockHit, ...]) -> list[tuple[BlockHit, Reader]]:
        """Readers for the leading run of blocks that can be opened."""
        opened: list[tuple[BlockHit, Reader]] = []
        for hit in hits:
            reader = self._store.open(hit)
            if reader is None:
                break
            opened.append((hit, reader))
        return opened

    def _blocks(self, request: Request, kept: KeptKV) -> Iterator[Block]:
        cuts = _cuts(request, kept)
        behinds = chain_hashes(kept.token_ids, [start for start, _ in cuts])
        fingerprint = self._fingerprint(request.adapter)
        for (start, stop), behind in zip(cuts, behinds, strict=True):
            tokens = kept.token_ids[start:stop]
            block_id = BlockId(fingerprint, kept.recipe, request.salt, behind, start, tokens)
            runs = kept.kv[:, :, start - kept.start : stop - kept.start]
            yield Block(block_id, self._shape, tuple(map(_bytes_of, runs)))


def _cuts(request: Request, kept: KeptKV) -> list[tuple[int, int]]:
    """Block ranges of what is kept: a prompt is cut by its segments, an answer from its start."""
    stop = len(kept.token_ids)
    if kept.is_answer:
        return [(a, min(a + BLOCK_TOKENS, stop)) for a in range(kept.start, stop, BLOCK_TOKENS)]
    cuts = cut_blocks(request.prompt, stop)
    return [(max(a, kept.start), b) for a, b in cuts if b > kept.start]


def _bytes_of(run: Tensor) -> memoryview:
    """One layer's run [2, tokens, kv heads, dim] as bytes: K, then V."""
    flat: np.ndarray[tuple[int], np.dtype[np.uint8]] = (
        run.contiguous().view(torch.uint8).reshape(-1).numpy()
    )
    return flat.data
