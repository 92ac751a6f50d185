"""Which part of a finished prefill or request is worth handing to the store."""

from __future__ import annotations

from kdn.core import EXACT, Recipe, RetainedKV, RetainedPrefix, Retention, TokenIds, chain_hash
from kdn.engine.request import RunningRequest

__all__ = ["family_name", "retained_answer", "retained_prompt", "shared_tokens", "wanted_capture"]


def shared_tokens(live: RunningRequest) -> int:
    """Prompt tokens before the last segment: what other requests may have in common."""
    segments = live.request.prompt.segments
    return sum(segment.num_tokens for segment in segments[:-1]) if len(segments) > 1 else 0


def family_name(live: RunningRequest) -> str:
    """Names the shared part of a prompt and whose KV may stand in for it."""
    request = live.request
    shared = chain_hash(request.prompt.token_ids[: shared_tokens(live)])
    return f"{request.adapter}/{request.salt}/{shared}"


def wanted_capture(
    live: RunningRequest, num_reused: int, keep: RetainedPrefix | None = None
) -> tuple[int, int] | None:
    """The positions [start, stop) whose KV must be noted down as it is computed, or None.

    What the plan would `keep` is an upper limit to what the request asks for.
    """
    retention = live.request.retention
    if retention is Retention.NOTHING:
        return None
    stop = live.request.prompt.num_tokens if retention is Retention.ALL else shared_tokens(live)
    if keep is not None:
        stop = min(stop, keep.num_tokens)
    return (num_reused, stop) if stop > num_reused else None


def retained_prompt(live: RunningRequest) -> RetainedKV | None:
    """KV of the shared part, as soon as the prompt is done. None when all of it was stored already."""
    keep = _keep(live)
    if live.capture is None:
        return None
    stop = min(shared_tokens(live), live.capture.stop)
    stop = min(stop, keep.num_tokens) if keep else stop
    if stop <= live.capture.start:
        return None
    token_ids = live.request.prompt.token_ids[:stop]
    kept = live.capture.kept(token_ids, live.capture.start, _recipe(live))
    if live.request.retention is Retention.SHARED or keep is not None:
        live.capture = None
    return kept


def retained_answer(live: RunningRequest) -> RetainedKV | None:
    """KV of the question and the answer. The last token drawn was never computed, so it is not in."""
    if live.capture is None:
        return None
    token_ids: TokenIds = (*live.request.prompt.token_ids, *live.generated[:-1])
    token_ids = token_ids[: live.capture.stop]
    start = max(shared_tokens(live), live.capture.start)
    if len(token_ids) <= start:
        return None
    return live.capture.kept(token_ids, start, _recipe(live), is_answer=True)


def _keep(live: RunningRequest) -> RetainedPrefix | None:
    return live.planned.plan.keep if live.planned else None


def _recipe(live: RunningRequest) -> Recipe:
    keep = _keep(live)
    return keep.recipe if keep is not None else EXACT
