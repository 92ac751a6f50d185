"""The bodies clients send, checked by shape; what they mean is decided in the routes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

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
    "TextBody",
    "TokenizeBody",
]


def _encodable(text: str) -> str:
    """JSON can spell half a surrogate pair, which is no text and would fail in the tokenizer."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("holds a lone surrogate, which is not valid Unicode") from error
    return text


Text = Annotated[str, AfterValidator(_encodable)]
TokenId = Annotated[int, Field(ge=0)]


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
    collection: Annotated[str, Field(max_length=128)] = ""
    """Which documents these are: blended answers over each collection are judged apart."""
    keep: Literal["nothing", "shared", "all"] = "all"
    """`shared` leaves out the last message and the answer, which only a next turn would use."""
    max_kl: Annotated[float, Field(ge=0)] | None = None
    """How far lossy codecs may move the answer by measurement (mean KL, nats); 0: not at all."""
    load_within_s: Annotated[float, Field(gt=0)] | None = None
    """By when stored KV is to be loaded; over a slow link a node then sends it smaller."""


class DocumentBody(_Strict):
    """A document that stands before the conversation."""

    text: Text
    id: Text | None = None


class PartRole(_Strict):
    """What a content part is for, when it is not simply part of the message."""

    role: Literal["document", "instruction", "question"]
    id: Text | None = None


class ContentPart(_Strict):
    type: str
    text: Text | None = None
    kdn: PartRole | None = None
    model_config = ConfigDict(extra="allow", strict=True)


class MessageBody(_Open):
    role: str
    content: Text | list[ContentPart] | None = None
    name: str | None = None


class JobBody(_Open):
    """What all bodies that ask the model have in common."""

    model: str | None = None
    cache_salt: Text | None = None
    priority: int | None = None


class SamplingBody(JobBody):
    """What chat and plain completions have in common."""

    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1)
    seed: int | None = None
    stop: Text | list[Text] | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool | None = None
    logit_bias: dict[str, float] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    kdn: KdnOptions | None = None


class ChatBody(SamplingBody):
    messages: list[MessageBody] = Field(min_length=1)
    documents: list[DocumentBody] | None = None
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)


class CompletionBody(SamplingBody):
    prompt: Text | list[Text] | list[TokenId] | list[list[TokenId]]
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    best_of: int | None = Field(None, ge=1)


class EmbeddingBody(_Open):
    input: Text | list[Text] | list[int] | list[list[int]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)


class ScoreBody(JobBody):
    """Pairs of texts under any of the names in use; or a query, items and label tokens."""

    text_1: Text | list[Text] | None = None
    text_2: Text | list[Text] | None = None
    queries: Text | list[Text] | None = None
    documents: Text | list[Text] | None = None
    data_1: Text | list[Text] | None = None
    data_2: Text | list[Text] | None = None
    instruction: Text | None = None
    query: Text | list[TokenId] | None = None
    items: Text | list[Text | list[TokenId]] | None = None
    label_token_ids: list[TokenId] | None = None
    apply_softmax: bool = False
    item_first: bool = False


class ClassifyBody(JobBody):
    input: Text | list[Text]
    labels: list[Text] = Field(min_length=2)
    instruction: Text | None = None


class DecisionBody(JobBody):
    """Yes/no questions about one text."""

    input: Text
    questions: list[Text] = Field(min_length=1)


class TextBody(_Open):
    """A document of a ranking, as some clients wrap it."""

    text: Text


class RerankBody(JobBody):
    """A query, and documents in Jina's, Cohere's or (`texts`) TEI's way."""

    query: Text
    documents: list[Text | TextBody] | None = None
    texts: list[Text] | None = None
    top_n: int | None = Field(None, ge=1)
    return_documents: bool | None = None
    return_text: bool = False
    raw_scores: bool = False
    """Log-odds in place of probabilities."""
    truncate: bool = False
    truncation: bool = False
    layout: str = "document-first"
    template: str | None = None
    instruction: Text | None = None


class TokenizeBody(_Strict):
    """Either `prompt`, or `messages` with their documents as a chat would be cut."""

    model: str | None = None
    prompt: Text | None = None
    messages: list[MessageBody] | None = None
    documents: list[DocumentBody] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(_Strict):
    model: str | None = None
    tokens: list[TokenId]
