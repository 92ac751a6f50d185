"""The shapes of answers, and how kdn's own results fill them.

Field order and explicit nulls are what OpenAI sends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec
from fastapi import Response
from msgspec import UNSET, Struct, UnsetType, field

from kdn.core import FinishReason, Token, TokenProb, Usage
from kdn.errors import Cancelled
from kdn.reuse.why import Explanation
from kdn.serve.openai.steering import SteeringReport
from kdn.serve.service import Vocabulary

__all__ = [
    "CachedTokens",
    "CalledTool",
    "ChatChoice",
    "ChatChunk",
    "ChatCompletion",
    "ChatDelta",
    "ChatLogprob",
    "ChatLogprobs",
    "ChatMessage",
    "ChunkChoice",
    "Completion",
    "CompletionChoice",
    "CompletionLogprobs",
    "Embedding",
    "EmbeddingList",
    "EmbeddingUsage",
    "FunctionCall",
    "JobAnswer",
    "KdnReport",
    "ModelCard",
    "ModelList",
    "PromptLogprob",
    "PromptLogprobs",
    "TopLogprob",
    "UsageReport",
    "WhyReport",
    "chat_logprobs",
    "completion_logprobs",
    "finish_name",
    "json_response",
    "kdn_report",
    "prompt_logprobs",
    "usage_report",
    "why_report",
]


class CachedTokens(Struct):
    cached_tokens: int


class UsageReport(Struct):
    """OpenAI's usage; `cached_tokens` are prompt tokens whose KV was reused, told at the end."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens | UnsetType = UNSET


class WhyReport(Struct):
    """Where a prompt left what is stored, and the likely reason (`docs/why-not.md`)."""

    reason: str
    sentence: str
    place: int
    role: str
    stored: int
    before: str
    text: str
    stored_text: str
    detail: str
    advice: str


class KdnReport(Struct):
    """What kdn did for the prompt: tokens reused and computed, times, tiers that supplied."""

    exact: int
    blended: int
    shared: int
    lossy: int
    recomputed: int
    queue_ms: float
    ttft_ms: float
    tiers: Mapping[str, int]
    levels: Mapping[str, int]
    why: WhyReport | UnsetType = UNSET
    steering: SteeringReport | UnsetType = UNSET


class JobAnswer(Struct, kw_only=True):
    """What every answer about many things begins with; `data` or its like follows."""

    id: str
    object: str = "list"
    created: int
    model: str
    usage: UsageReport


class TopLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    content: list[ChatLogprob]
    refusal: None = None


class FunctionCall(Struct):
    name: str
    arguments: str


class CalledTool(Struct):
    """A call; `index` is its place among the calls of the answer."""

    index: int
    id: str
    function: FunctionCall
    type: str = "function"


class ChatMessage(Struct):
    content: str | None
    role: str = "assistant"
    refusal: None = None
    tool_calls: list[CalledTool] | UnsetType = UNSET


class ChatChoice(Struct):
    index: int
    message: ChatMessage
    finish_reason: str
    logprobs: ChatLogprobs | None = None


class PromptLogprob(Struct):
    """One token of the prompt, or an alternative to it, as vLLM tells it."""

    logprob: float
    rank: int | None
    """1 is the likeliest; None for one that is not among the alternatives."""
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""By token id, in the order of the prompt; None for the first token, which follows nothing."""


class ChatCompletion(Struct, kw_only=True):
    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageReport | UnsetType = UNSET
    kdn: KdnReport | UnsetType = UNSET
    system_fingerprint: str | None = None
    """The model's `weights`, as its card tells them; not in streams."""
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class ChatDelta(Struct):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[CalledTool] | UnsetType = UNSET


class ChunkChoice(Struct):
    index: int
    delta: ChatDelta
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None


class ChatChunk(Struct, kw_only=True):
    """One event of a streamed chat. `kdn` comes with the last event that has it to tell."""

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    system_fingerprint: str | None = None
    usage: UsageReport | UnsetType | None = UNSET
    kdn: KdnReport | UnsetType = UNSET


class CompletionLogprobs(Struct):
    """Parallel lists, one entry a token; offsets count characters of `text`."""

    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)


class CompletionChoice(Struct):
    index: int
    text: str
    finish_reason: str | None = None
    logprobs: CompletionLogprobs | None = None
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class Completion(Struct, kw_only=True):
    """A completion, or one event of a streamed one."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str | None = None
    usage: UsageReport | UnsetType | None = UNSET
    kdn: KdnReport | UnsetType = UNSET


class Embedding(Struct):
    index: int
    embedding: list[float] | str
    object: str = "embedding"


class EmbeddingUsage(Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Struct):
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: str = "list"


class ModelCard(Struct):
    id: str
    created: int
    max_model_len: int
    parent: str | None = None
    object: str = "model"
    owned_by: str = "kdn"
    weights: str | UnsetType = UNSET
    """A digest of the weights, an adapter's too, and of what they are computed in: dtype, quantization,
    tokenizer. The same on every machine."""


class ModelList(Struct):
    data: list[ModelCard]
    object: str = "list"


def json_response(shape: object) -> Response:
    """`shape` as the JSON body of a response."""
    return Response(msgspec.json.encode(shape), media_type="application/json")


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


def why_report(found: Explanation, *, with_text: bool = True) -> WhyReport:
    """An explanation's shape; without text for those whose text it is not."""
    return WhyReport(
        reason=str(found.reason),
        sentence=found.sentence if with_text else replace(found, detail="").sentence,
        place=found.place,
        role=found.role,
        stored=found.stored,
        before=found.before if with_text else "",
        text=found.text if with_text else "",
        stored_text=found.stored_text if with_text else "",
        detail=found.detail if with_text else "",
        advice=found.reason.advice,
    )


def chat_logprobs(tokens: Sequence[Token], vocabulary: Vocabulary) -> ChatLogprobs:
    """One entry a token, for tokens that carry a logprob."""
    return ChatLogprobs([_chat_logprob(token, vocabulary) for token in tokens])


def _chat_logprob(token: Token, vocabulary: Vocabulary) -> ChatLogprob:
    """`bytes` join to the content, also where a token is a part of a character."""
    text = vocabulary.token_text(token.token_id)
    own = list(vocabulary.token_bytes(token.token_id))
    top = [
        TopLogprob(one.text, one.logprob, list(vocabulary.token_bytes(one.token_id)))
        for one in token.alternatives
    ]
    return ChatLogprob(text, token.logprob or 0.0, own, top)


def prompt_logprobs(tokens: Sequence[Token]) -> PromptLogprobs:
    """Each token of a prompt and its alternatives."""
    return [_prompt_logprob(token) for token in tokens]


def _prompt_logprob(token: Token) -> dict[str, PromptLogprob] | None:
    if token.logprob is None:
        return None
    own = PromptLogprob(token.logprob, None, token.text)
    others = enumerate(token.alternatives, 1)
    return {str(token.token_id): own} | {
        str(one.token_id): PromptLogprob(one.logprob, rank, one.text) for rank, one in others
    }


def completion_logprobs(
    tokens: Sequence[Token], vocabulary: Vocabulary, offset: int
) -> CompletionLogprobs:
    """The parallel lists of plain completions; `offset` characters stand before the first token."""
    found = CompletionLogprobs()
    for token in tokens:
        found.tokens.append(_name(token.token_id, vocabulary, {}))
        found.token_logprobs.append(token.logprob)
        found.top_logprobs.append(_by_name(token.alternatives, vocabulary) or None)
        found.text_offset.append(offset)
        offset += len(token.text)
    return found


def _by_name(alternatives: Sequence[TokenProb], vocabulary: Vocabulary) -> dict[str, float]:
    """As many entries as alternatives: tokens that read alike get names that differ."""
    found: dict[str, float] = {}
    for one in alternatives:
        found[_name(one.token_id, vocabulary, found)] = one.logprob
    return found


def _name(token_id: int, vocabulary: Vocabulary, taken: Mapping[str, float]) -> str:
    """The token's text; where that is half a character or taken, its bytes as OpenAI wrote them."""
    text = vocabulary.token_text(token_id)
    if "\ufffd" not in text and text not in taken:
        return text
    spelt = "bytes:" + "".join(f"\\x{byte:02x}" for byte in vocabulary.token_bytes(token_id))
    return f"token_id:{token_id}" if spelt in taken else spelt
