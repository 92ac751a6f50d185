"""The bodies clients send, checked by shape; what they mean is decided in the routes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kdn.serve.limits import (
    MAX_BIASES,
    MAX_COUNT,
    MAX_DOCUMENTS,
    MAX_INPUTS,
    MAX_LABELS,
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_PROMPTS,
    MAX_QUESTIONS,
    MAX_SEED,
    MAX_STOPS,
    MIN_SEED,
    Count,
    Inputs,
    Name,
    Prompts,
    Questions,
    StopText,
    Text,
    TokenId,
    TokenIdList,
)

__all__ = [
    "ChatBody",
    "ClassifyBody",
    "CompletionBody",
    "ContentPart",
    "DecisionBody",
    "DetokenizeBody",
    "DocumentBody",
    "EmbeddingBody",
    "JobBody",
    "KdnOptions",
    "MessageBody",
    "PartRole",
    "RerankBody",
    "SamplingBody",
    "ScoreBody",
    "StreamOptions",
    "TokenizeBody",
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Open(BaseModel):
    """Unknown fields are kept aside, to be judged by name (see unsupported.py)."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class StreamOptions(_Open):
    include_usage: bool = False


class KdnOptions(_Strict):
    """May stored KV be used for this request, and which of its KV is kept?"""

    reuse: bool | Literal["exact", "blend"] = True
    """`blend` also reuses documents that stood elsewhere when computed; true means `exact`."""
    ratio: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = "auto"
    """The share of blended documents' tokens that is recomputed."""
    collection: Annotated[Text, Field(max_length=128)] = ""
    """Which documents these are: blended answers over each collection are judged apart."""
    keep: Literal["nothing", "shared", "all"] = "all"
    """`shared` leaves out the last message and the answer, which only a next turn would use."""
    max_kl: Annotated[float, Field(ge=0)] | None = None
    """How far lossy codecs may move the answer by measurement (mean KL, nats); 0: not at all."""
    load_within_s: Annotated[float, Field(gt=0)] | None = None
    """By when stored KV is to be loaded; over a slow link a node then sends it smaller."""


class DocumentBody(_Strict):
    """A document, as people write it, or as LangChain does (`page_content`, `metadata`)."""

    text: Text | None = None
    title: Text | None = None
    page_content: Text | None = None
    metadata: dict[str, Any] | None = None
    type: Literal["Document"] | None = None
    id: Name | None = None


class PartRole(_Strict):
    """What a content part is for, when it is not simply part of the message."""

    role: Literal["document", "instruction", "question"]
    id: Name | None = None


class ContentPart(_Strict):
    type: Name
    text: Text | None = None
    kdn: PartRole | None = None
    model_config = ConfigDict(extra="allow", strict=True)


class MessageBody(_Open):
    role: Name
    content: Text | Annotated[list[ContentPart], Field(max_length=MAX_PARTS)] | None = None
    name: Name | None = None


class JobBody(_Open):
    """What all bodies that ask the model have in common."""

    model: Name | None = None
    cache_salt: Name | None = None
    priority: int | None = Field(None, ge=-MAX_COUNT, le=MAX_COUNT)


class SamplingBody(JobBody):
    """What chat and plain completions have in common."""

    max_tokens: Count | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=MAX_COUNT)
    min_p: float | None = Field(None, ge=0, le=1)
    n: Count | None = None
    seed: int | None = Field(None, ge=MIN_SEED, le=MAX_SEED)
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: list[TokenId] | None = Field(None, max_length=MAX_STOPS)
    ignore_eos: bool | None = None
    logit_bias: dict[str, float] | None = Field(None, max_length=MAX_BIASES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    kdn: KdnOptions | None = None


class ChatBody(SamplingBody):
    messages: list[MessageBody] = Field(min_length=1, max_length=MAX_MESSAGES)
    documents: list[DocumentBody | Text] | None = Field(None, max_length=MAX_DOCUMENTS)
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)


class CompletionBody(SamplingBody):
    prompt: (
        Text | Prompts | TokenIdList | Annotated[list[TokenIdList], Field(max_length=MAX_PROMPTS)]
    )
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    best_of: Count | None = None


class EmbeddingBody(_Open):
    input: Text | Inputs | TokenIdList | Annotated[list[TokenIdList], Field(max_length=MAX_INPUTS)]
    model: Name | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
    truncate_prompt_tokens: Literal[-1] | None = None
    """-1: of a text that is too long for the embedder only the beginning is read."""


class ScoreBody(JobBody):
    """Pairs of texts under any of the names in use; or a query, items and label tokens."""

    text_1: Text | Questions | None = None
    text_2: Text | Questions | None = None
    queries: Text | Questions | None = None
    documents: Text | Questions | None = None
    data_1: Text | Questions | None = None
    data_2: Text | Questions | None = None
    instruction: Text | None = None
    query: Text | TokenIdList | None = None
    items: Text | list[Text | TokenIdList] | None = Field(None, max_length=MAX_QUESTIONS)
    label_token_ids: list[TokenId] | None = Field(None, max_length=MAX_LABELS)
    apply_softmax: bool = False
    item_first: bool = False


class ClassifyBody(JobBody):
    input: Text | Questions
    labels: list[Name] = Field(min_length=2, max_length=MAX_LABELS)
    instruction: Text | None = None


class DecisionBody(JobBody):
    """Yes/no questions about one text."""

    input: Text
    questions: list[Text] = Field(min_length=1, max_length=MAX_QUESTIONS)


class RerankBody(JobBody):
    """A query, and documents in Jina's, Cohere's or (`texts`) TEI's way."""

    query: Text
    documents: list[DocumentBody | Text] | None = None
    texts: list[Text] | None = None
    top_n: Count | None = None
    return_documents: bool | None = None
    return_text: bool = False
    raw_scores: bool = False
    """Log-odds in place of probabilities."""
    truncate: bool = False
    truncation: bool = False
    max_tokens_per_doc: Count | None = None
    """Cohere's: of a longer document only the beginning is read."""
    layout: Name = "document-first"
    template: Name | None = None
    instruction: Text | None = None


class TokenizeBody(_Strict):
    """Either `prompt`, or `messages` with their documents as a chat would be cut."""

    model: Name | None = None
    prompt: Text | None = None
    messages: list[MessageBody] | None = Field(None, max_length=MAX_MESSAGES)
    documents: list[DocumentBody | Text] | None = Field(None, max_length=MAX_DOCUMENTS)
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(_Strict):
    model: Name | None = None
    tokens: TokenIdList
