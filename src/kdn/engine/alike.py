"""Prompts that begin alike and come together: the first computes the beginning, the others wait for it."""

from __future__ import annotations

from collections.abc import Iterable

from kdn.core import BLOCK_TOKENS, TokenIds
from kdn.engine.kv import retains_answer, shared_tokens
from kdn.engine.request import RunningRequest

__all__ = ["common_blocks", "waits_for_another"]


def waits_for_another(
    running: RunningRequest, num_cached: int, prefilling: Iterable[RunningRequest]
) -> bool:
    """Is one of those `prefilling` about to leave most of what the prompt misses?

    `num_cached` tokens of the prompt are stored.  A request waits for one other only, and only until
    that has its first token: it may be that nothing is stored of it, and what comes later never holds
    it up.
    """
    if not running.waits_for:
        leader = next((one for one in prefilling if _leaves_most(one, running, num_cached)), None)
        if leader is None:
            return False
        running.waits_for = leader.id
        return True
    return any(one.id == running.waits_for for one in prefilling)


def common_blocks(one: TokenIds, other: TokenIds) -> int:
    """Tokens at the beginning of both, in whole blocks."""
    stop = 0
    while stop + BLOCK_TOKENS <= min(len(one), len(other)):
        block = slice(stop, stop + BLOCK_TOKENS)
        if one[block] != other[block]:
            break
        stop += BLOCK_TOKENS
    return stop


def _leaves_most(leader: RunningRequest, running: RunningRequest, num_cached: int) -> bool:
    """Will the leader's first token leave at least half of what the other would compute?"""
    mine, theirs = running.request, leader.request
    if not mine.reuse or (mine.salt, mine.adapter) != (theirs.salt, theirs.adapter):
        return False
    tokens = mine.prompt.token_ids[:-1]  # the last is computed in any case
    common = min(common_blocks(tokens, theirs.prompt.token_ids), _left_at_first_token(leader))
    noted_from = leader.capture.start if leader.capture is not None else common
    missing = mine.prompt.num_tokens - num_cached
    return 2 * (common - max(num_cached, noted_from)) >= missing


def _left_at_first_token(leader: RunningRequest) -> int:
    """Where the KV ends that the store gets when the leader's prompt is done; 0 for none that is exact."""
    plan = leader.planned.plan if leader.planned is not None else None
    if leader.capture is None or plan is None or plan.keep is not None:
        return 0
    prompt = leader.request.prompt
    stop = prompt.num_tokens if retains_answer(leader) else shared_tokens(leader.request)
    return min(stop, leader.capture.stop)
