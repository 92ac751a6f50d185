"""What outlives a request: which of its KV is noted, and which of that the store is handed, and when.

prompt   segment | ... | last segment | answer
         shared part   | whole blocks | the rest
         -- at the first token ------ | -- at the end
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdn.core import (
    BLOCK_TOKENS,
    EXACT,
    Plan,
    Recipe,
    Request,
    RetainedKV,
    Retention,
    TokenIds,
    chain_hash,
)
from kdn.engine.kv import Capture

if TYPE_CHECKING:
    from kdn.engine.request import RunningRequest

__all__ = [
    "family_name",
    "retained_answer",
    "retained_prompt",
    "retained_question",
    "retains_answer",
    "shared_tokens",
    "wanted_capture",
]


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
    """KV of the last segment's whole blocks, once the prompt is done: a prompt that begins alike need not
    wait for the answer. None when there are none, or the answer is not retained."""
    capture = running.capture
    if capture is None or not retains_answer(running):
        return None
    start, stop = _own_start(running, capture), _question_stop(running, capture)
    if stop == start:
        return None
    token_ids = running.request.prompt.token_ids[:stop]
    return capture.retained(token_ids, start, _recipe(running), is_answer=True)


def _own_start(running: RunningRequest, capture: Capture) -> int:
    """Where what the request does not share begins, of what was noted."""
    return max(shared_tokens(running.request), capture.start)


def _question_stop(running: RunningRequest, capture: Capture) -> int:
    """The end of the question's whole blocks: the answer's blocks are cut as if it began where they do."""
    start = _own_start(running, capture)
    noted = min(running.request.prompt.num_tokens, capture.stop) - start
    return start + max(noted, 0) // BLOCK_TOKENS * BLOCK_TOKENS


def retained_answer(running: RunningRequest) -> RetainedKV | None:
    """KV of the question and the answer, without the blocks of `retained_question`.

    The last token drawn was never computed, so it is not in.
    """
    capture, request = running.capture, running.request
    if capture is None or request.retention is not Retention.ALL:
        return None
    token_ids: TokenIds = (*request.prompt.token_ids, *running.generated[:-1])
    limit = running.planned.plan.keep if running.planned is not None else None
    stop = capture.stop if limit is None else min(capture.stop, limit.num_tokens)
    token_ids = token_ids[:stop]
    whole = retains_answer(running)
    start = _question_stop(running, capture) if whole else _own_start(running, capture)
    if len(token_ids) <= start:
        return None
    return capture.retained(token_ids, start, _recipe(running), is_answer=True)


def _recipe(running: RunningRequest) -> Recipe:
    limit = running.planned.plan.keep if running.planned is not None else None
    return limit.recipe if limit is not None else EXACT
