"""What is noted of a request for the store: unrotated KV, handed over at the first token and the last."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdn.core import (
    BLOCK_TOKENS,
    EXACT,
    KvShape,
    Plan,
    Recipe,
    Request,
    RetainedKV,
    Retention,
    TokenIds,
    chain_hash,
)
from kdn.engine.kv import extents, zeros

if TYPE_CHECKING:
    from kdn.engine.request import RunningRequest

__all__ = [
    "Capture",
    "drop_handed_over",
    "family_name",
    "retained_answer",
    "retained_prompt",
    "retained_question",
    "retains_answer",
    "shared_tokens",
    "wanted_capture",
]


class Capture:
    """K before rotation and V from position `start` on: [layers, 2, tokens, kv heads, dim], on the CPU."""

    def __init__(self, shape: KvShape, dtype: torch.dtype, start: int, num_tokens: int) -> None:
        self.start = start
        self._size = (shape.num_layers, 2, extents(num_tokens), shape.num_kv_heads, shape.head_dim)
        self._kv = zeros(self._size, dtype)

    @property
    def stop(self) -> int:
        """The first position there is no memory for."""
        return self.start + self._kv.shape[2]

    def grow(self, stop: int) -> None:
        """Memory for positions up to `stop`. What is written stays."""
        if stop <= self.stop:
            return
        layers, two, _, heads, dim = self._size
        kv = zeros((layers, two, extents(stop - self.start), heads, dim), self._kv.dtype)
        kv[:, :, : self._kv.shape[2]] = self._kv
        self._kv = kv

    def drop_before(self, start: int, stop: int) -> None:
        """Give up what lies before `start`. What was noted of [start, stop) stays."""
        if start <= self.start:
            return
        layers, two, _, heads, dim = self._size
        kv = zeros((layers, two, extents(max(stop - start, 1)), heads, dim), self._kv.dtype)
        kv[:, :, : stop - start] = self._kv[:, :, start - self.start : stop - self.start]
        self._kv, self.start = kv, start

    def note(self, layer: int, positions: Tensor, k: Tensor, v: Tensor) -> None:
        """Rows [rows, kv heads, dim] at `positions`; those outside the buffer are passed over."""
        if not positions.numel():
            return
        first, last = int(positions[0]), int(positions[-1])
        if last - first + 1 == positions.numel() and first >= self.start and last < self.stop:
            at = slice(first - self.start, last + 1 - self.start)
            self._kv[layer, 0, at] = k
            self._kv[layer, 1, at] = v
            return
        inside = (positions >= self.start) & (positions < self.stop)
        places = positions[inside] - self.start
        self._kv[layer, 0, places] = k[inside.to(k.device)].cpu()
        self._kv[layer, 1, places] = v[inside.to(v.device)].cpu()

    def note_at(self, position: int) -> tuple[Tensor, int]:
        """The buffer, and the column of `position`: for a kernel that notes many layers itself."""
        return self._kv, position - self.start

    def retained(
        self, token_ids: TokenIds, start: int, recipe: Recipe = EXACT, *, is_answer: bool = False
    ) -> RetainedKV:
        """What was noted for positions [start, len(token_ids)), as a view."""
        kv = self._kv[:, :, start - self.start : len(token_ids) - self.start]
        return RetainedKV(start, token_ids, kv, recipe, is_answer)


def shared_tokens(request: Request) -> int:
    """Prompt tokens before the last segment: what other requests may have in common."""
    segments = request.prompt.segments
    return sum(segment.num_tokens for segment in segments[:-1]) if len(segments) > 1 else 0


def family_name(request: Request, adapter_from: int = 0) -> str:
    """Names the shared part of a prompt and whose KV may stand in for it."""
    num_shared = shared_tokens(request)
    shared = chain_hash(request.prompt.token_ids[:num_shared])
    adapter = request.adapter if adapter_from < num_shared else None
    return f"{adapter}/{request.salt}/{shared}"


def wanted_capture(request: Request, plan: Plan) -> tuple[int, int] | None:
    """The positions [start, stop) whose KV must be noted as it is computed, or None.

    The plan's own limit is an upper limit to what the request asks for.
    """
    if request.retention is Retention.NOTHING:
        return None
    whole = request.retention is Retention.ALL
    stop = request.prompt.num_tokens if whole else shared_tokens(request)
    if plan.keep is not None:
        stop = min(stop, plan.keep.num_tokens)
    return (plan.num_prefix, stop) if stop > plan.num_prefix else None


def retained_prompt(running: RunningRequest) -> RetainedKV | None:
    """KV of the shared part, once the prompt is done. None when all of it was stored already."""
    capture, request = running.capture, running.request
    if capture is None:
        return None
    stop = min(shared_tokens(request), capture.stop)
    limit = running.planned.plan.keep if running.planned is not None else None
    stop = min(stop, limit.num_tokens) if limit is not None else stop
    if stop <= capture.start:
        return None
    return capture.retained(request.prompt.token_ids[:stop], capture.start, _recipe(running))


def retains_answer(running: RunningRequest) -> bool:
    """Is KV to be noted while the request decodes?"""
    limited = running.planned is not None and running.planned.plan.keep is not None
    return running.request.retention is Retention.ALL and not limited


def retained_question(running: RunningRequest) -> RetainedKV | None:
    """KV of the last segment's whole blocks, once the prompt is done: prompts that begin alike need not
    wait for the answer. None when there are none, or the answer is not retained."""
    capture = running.capture
    if capture is None or not retains_answer(running):
        return None
    start, stop = _own_blocks(running, capture)
    token_ids = running.request.prompt.token_ids[:stop]
    recipe = _recipe(running)
    return capture.retained(token_ids, start, recipe, is_answer=True) if stop > start else None


def drop_handed_over(running: RunningRequest) -> None:
    """Give up, once the store was handed them, the rows of the prompt that the answer does not need again.

    Only so is a buffer for the answer small: making the whole prompt's longer would copy it.
    """
    capture = running.capture
    if capture is not None and retains_answer(running):
        _, given_to = _own_blocks(running, capture)
        capture.drop_before(given_to, min(running.request.prompt.num_tokens, capture.stop))


def _own_blocks(running: RunningRequest, capture: Capture) -> tuple[int, int]:
    """Where what is not shared begins, and its whole blocks end, of the prompt's tokens that were noted."""
    start = max(shared_tokens(running.request), capture.start)
    noted = min(running.request.prompt.num_tokens, capture.stop) - start
    return start, start + max(noted, 0) // BLOCK_TOKENS * BLOCK_TOKENS


def retained_answer(running: RunningRequest) -> RetainedKV | None:
    """KV of the question and the answer, after what `retained_question` gave. The last token drawn was
    never computed, so it is not in."""
    capture, request = running.capture, running.request
    if capture is None or request.retention is not Retention.ALL:
        return None
    token_ids: TokenIds = (*request.prompt.token_ids, *running.generated[:-1])
    limit = running.planned.plan.keep if running.planned is not None else None
    stop = capture.stop if limit is None else min(capture.stop, limit.num_tokens)
    token_ids = token_ids[:stop]
    start, given_to = _own_blocks(running, capture)
    if retains_answer(running):
        start = given_to
    if len(token_ids) <= start:
        return None
    return capture.retained(token_ids, start, _recipe(running), is_answer=True)


def _recipe(running: RunningRequest) -> Recipe:
    limit = running.planned.plan.keep if running.planned is not None else None
    return limit.recipe if limit is not None else EXACT
