"""Load or recompute: what both take, and for each request how much of what is stored is worth fetching."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from kdn.store.index.index import BlockHit, Match

__all__ = ["EstimateS", "worth_loading"]

NEARLY = 1.01
EstimateS = Callable[[int, int], float]
"""estimate_s(new, cached): seconds to prefill `new` tokens after `cached` ones that are loaded."""


def worth_loading(
    match: Match,
    num_tokens: int,
    token_bytes: int,
    bytes_per_s: Callable[[BlockHit], float | None],
    estimate_s: EstimateS,
) -> Match:
    """The leading part of `match` with which a prompt of `num_tokens` is answered soonest.

    Layers are loaded while others are computed, so a choice takes as long as the longer of the two.
    `bytes_per_s` is how quickly a block's KV comes, in bytes once decoded.  A tier whose speed is not known
    yet counts as free: loading from it is how it gets known.
    Between choices that are nearly equal the one that computes least wins.
    """
    best, best_s = 0, estimate_s(num_tokens, 0)
    load_s, cached = 0.0, 0
    for count, hit in enumerate(match.hits, start=1):
        speed = bytes_per_s(hit)
        is_known = speed is not None and 0 < speed < inf
        load_s += hit.id.num_tokens * token_bytes / speed if speed and is_known else 0.0
        cached += hit.num_tokens
        takes_s = max(load_s, estimate_s(num_tokens - cached, cached))
        if takes_s <= best_s * NEARLY:
            best, best_s = count, min(best_s, takes_s)
    return match if best == len(match.hits) else Match(match.hits[:best])
