"""From kdn's own results to the shapes on the wire."""

from __future__ import annotations

from collections.abc import Sequence

from kdn.core import FinishReason, Token, TokenProb, Usage
from kdn.errors import Cancelled
from kdn.serve.openai.responses import (
    CachedTokens,
    ChatLogprob,
    ChatLogprobs,
    CompletionLogprobs,
    KdnReport,
    TopLogprob,
    UsageReport,
)
from kdn.serve.openai.streams import Gathered
from kdn.serve.service import Vocabulary

__all__ = ["chat_logprobs", "completion_logprobs", "finish_name", "kdn_report", "usage_report"]


def finish_name(reason: FinishReason) -> str:
    """`stop` or `length`. OpenAI has no word for an answer that was stopped from outside."""
    if reason is FinishReason.CANCELLED:
        raise Cancelled("the answer was stopped before its end")
    return str(reason)


def usage_report(usages: Sequence[Usage], prompts: Sequence[Usage]) -> UsageReport:
    """All answers' tokens, and each prompt once however many answers it got."""
    prompt = sum(usage.prompt_tokens for usage in prompts)
    completion = sum(usage.completion_tokens for usage in usages)
    cached = sum(usage.cached_tokens for usage in prompts)
    return UsageReport(prompt, completion, prompt + completion, CachedTokens(cached))


def kdn_report(prompts: Sequence[Usage]) -> KdnReport:
    """What became of the prompts; times are the slowest one's."""
    tiers: dict[str, int] = {}
    levels: dict[str, int] = {}
    for usage in prompts:
        for tier, tokens in usage.tiers.items():
            tiers[tier] = tiers.get(tier, 0) + tokens
        for level, size_bytes in usage.levels.items():
            levels[level] = levels.get(level, 0) + size_bytes
    return KdnReport(
        exact=sum(usage.exact for usage in prompts),
        blended=sum(usage.blended for usage in prompts),
        shared=sum(usage.shared for usage in prompts),
        lossy=sum(usage.lossy for usage in prompts),
        recomputed=sum(usage.recomputed for usage in prompts),
        queue_ms=round(max(usage.queue_ms for usage in prompts), 3),
        ttft_ms=round(max(usage.ttft_ms for usage in prompts), 3),
        tiers=tiers,
        levels=levels,
    )


def first_of_each(answers: Sequence[Gathered], per_prompt: int) -> list[Usage]:
    """The usage of the first answer to each prompt."""
    return [answer.ended.usage for answer in answers[::per_prompt]]


def chat_logprobs(tokens: Sequence[Token], vocabulary: Vocabulary) -> ChatLogprobs:
    """One entry a token, for tokens that carry a logprob."""
    return ChatLogprobs([_chat_logprob(token, vocabulary) for token in tokens])


def _chat_logprob(token: Token, vocabulary: Vocabulary) -> ChatLogprob:
    text = vocabulary.token_text(token.token_id)
    top = [_top(one) for one in token.alternatives]
    return ChatLogprob(text, token.logprob or 0.0, _bytes(text), top)


def _top(one: TokenProb) -> TopLogprob:
    return TopLogprob(one.text, one.logprob, _bytes(one.text))


def _bytes(text: str) -> list[int] | None:
    """None where a token is part of a character: its own bytes are not known from its text."""
    return None if "\ufffd" in text else list(text.encode())


def completion_logprobs(
    tokens: Sequence[Token], vocabulary: Vocabulary, offset: int
) -> CompletionLogprobs:
    """The parallel lists of plain completions; `offset` characters stand before the first token."""
    found = CompletionLogprobs()
    for token in tokens:
        found.tokens.append(vocabulary.token_text(token.token_id))
        found.token_logprobs.append(token.logprob)
        found.top_logprobs.append({one.text: one.logprob for one in token.alternatives} or None)
        found.text_offset.append(offset)
        offset += len(token.text)
    return found
