"""The shapes of answers on the wire. Field order and explicit nulls are what OpenAI sends."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import UNSET, Struct, UnsetType, field

__all__ = [
    "CachedTokens",
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
    "KdnReport",
    "ModelCard",
    "ModelList",
    "TopLogprob",
    "UsageReport",
]


class CachedTokens(Struct):
    cached_tokens: int


class UsageReport(Struct):
    """OpenAI's usage; `cached_tokens` are prompt tokens whose KV was reused."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


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


class TopLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int] | None


class ChatLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    content: list[ChatLogprob]
    refusal: None = None


class ChatMessage(Struct):
    content: str
    role: str = "assistant"
    refusal: None = None


class ChatChoice(Struct):
    index: int
    message: ChatMessage
    finish_reason: str
    logprobs: ChatLogprobs | None = None


class ChatCompletion(Struct, kw_only=True):
    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageReport
    kdn: KdnReport
    system_fingerprint: str | None = None


class ChatDelta(Struct):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


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


class ModelList(Struct):
    data: list[ModelCard]
    object: str = "list"
