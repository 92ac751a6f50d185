"""A prompt that kdn's engine blended, for another engine to load whole.

Another engine's connector knows prefixes only: it cannot be told that documents in the middle of a prompt
are stored.  So kdn computes the blended prompt itself, and the connector loads all of it as one external
hit.  Such KV is tainted.  It lies under a recipe of its own and a salt that no other request has, so
neither kdn's exact lookups nor the engine's own prefix cache give it to any other prompt.

    documents + question ─> plan (stored chunks, recomputed rows) ─> one pass ─> HANDED blocks under a salt
                                                                                   │
    the engine's request: token ids, cache_salt, kdn_handoff ─> connector ─────────┘
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kdn.api import Kdn
from kdn.core import Request, TokenIds
from kdn.engine import AloneRun, kv_shape, run_alone
from kdn.errors import BadInput
from kdn.scale.identity import HANDED, handoff_fingerprint
from kdn.scale.paged import RUN_LAYOUT
from kdn.store import Block, Store, block_ids

__all__ = ["HandedPrompt", "hand_over"]


@dataclass(frozen=True)
class HandedPrompt:
    """What the other engine is asked with."""

    token_ids: TokenIds
    salt: str
    """The request's `cache_salt`. Every request that names it can load the prompt's KV."""
    num_exact: int
    num_blended: int
    """Tokens whose KV was taken from documents that stood elsewhere."""
    num_rows: int
    """Rows that were computed, summed over the layers."""

    def body(self) -> dict[str, object]:
        """The part of a `/v1/completions` request that has the connector load it."""
        return {
            "prompt": list(self.token_ids),
            "cache_salt": self.salt,
            "kv_transfer_params": {"kdn_handoff": True},
        }


def hand_over(
    kdn: Kdn, request: Request, store: Store, weights: str, new_salt: Callable[[], str]
) -> HandedPrompt:
    """Compute the request's prompt as it asks (`Blend` among its techniques), and store all of its KV.

    `store` is one that the connector sees.  Nothing else may run on `kdn` meanwhile: the plan is made
    in this thread.  Raises BadInput for a request with an adapter, which the other engine would name
    otherwise, and StoreError when the KV cannot be stored.
    """
    if request.adapter is not None:
        raise BadInput("a prompt for an adapter cannot be handed over; ask without it")
    shape = kv_shape(kdn.model)
    with ExitStack() as opened:
        opened.callback(kdn.parts.ended.forget, request.id)
        planned = kdn.parts.planner.plan(request)
        prefix = planned.plan.prefix
        for source in (*([prefix] if prefix else []), *(run.source for run in planned.plan.stored)):
            opened.callback(source.close)
        done = run_alone(kdn.model, kdn.parts.attention, replace(planned.plan, one_layer=False))
    tokens, salt = request.prompt.token_ids, new_salt()
    named = block_ids(
        request.prompt,
        len(tokens),
        fingerprint=handoff_fingerprint(weights, RUN_LAYOUT, shape),
        recipe=HANDED,
        salt=salt,
    )
    for block_id in named:
        stop = block_id.start + block_id.num_tokens
        runs = tuple(_run(done, layer, block_id.start, stop) for layer in range(shape.num_layers))
        store.put(Block(block_id, shape, runs))
    store.flush()
    return HandedPrompt(tokens, salt, planned.exact, planned.blended, done.num_rows)


def _run(done: AloneRun, layer: int, start: int, stop: int) -> memoryview:
    """K, then V of positions [start, stop) at a layer: each [tokens, heads, dim], keys rotated."""
    k, v = _columns(done, layer)
    halves = torch.stack([k[start:stop], v[start:stop]])
    data: memoryview = halves.cpu().view(-1).view(torch.uint8).numpy().data
    return data


def _columns(done: AloneRun, layer: int) -> tuple[Tensor, Tensor]:
    """K and V of all positions at a layer, each [tokens, heads, dim]."""
    suffix, prefix, first = done.kv.suffix, done.kv.prefix, done.kv.num_prefix
    k = suffix.k[layer, :, : suffix.num_columns].transpose(0, 1)
    v = suffix.v[layer, :, :, : suffix.num_columns].permute(2, 0, 1)
    if prefix is not None:
        k = torch.cat([prefix.k[layer, :, :first].transpose(0, 1), k])
        v = torch.cat([prefix.v[layer, :, :, :first].permute(2, 0, 1), v])
    return k, v
