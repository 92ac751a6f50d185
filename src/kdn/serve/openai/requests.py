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
    MAX_SPANS,
    MAX_STOPS,
    MIN_SEED,
    Count,
    Inputs,
    Name,
    Prompts,
    Questions,
    Salt,
    StopText,
    Text,
    TokenId,
    TokenIdList,
)
from kdn.serve.openai.structured import ConstrainedBody
from kdn.serve.openai.tools import TemplateBody, ToolCallBody

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
    "RankedBody",
    "RerankBody",
    "SamplingBody",
    "ScoreBody",
    "SpanBody",
    "StreamOptions",
    "TokenizeBody",
]


class _Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class _Open(BaseModel):
    """Unknown fields are kept aside, to be judged by name (see `parse.py`)."""

    model_config = ConfigDict(
        extra="allow", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class StreamOptions(_Strict):
    include_usage: bool = False
    """The last event tells the usage of the whole request."""
    include_obfuscation: bool | None = None
    """Not read: nothing is added to events."""
    continuous_usage_stats: bool | None = None
    """vLLM's: every event tells how many tokens its answer has so far."""


class SpanBody(_Strict):
    """A run of characters that the answer is to attend to more, or less: its text, or its offsets."""

    weight: float
    """From 0 to 1000, clipped to 0.01 to 10: above 1 stresses, below 1 mutes."""
    text: Text | None = None
    """Marked wherever it stands in documents and messages, or in `document` alone."""
    document: int | Name | None = None
    """A document's number, from 0, or its id."""
    start: int | None = None
    """The first character in the document."""
    stop: int | None = None
    """The character after the last."""


class KdnOptions(_Strict):
    """May stored KV be used for this request, and which of its KV is kept?"""

    reuse: bool | Literal["exact", "blend"] = True
    """`blend` also reuses documents that stood elsewhere when computed; true means `exact`."""
    ratio: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = "auto"
    """The share of blended documents' tokens that is recomputed."""
    collection: Annotated[Text, Field(max_length=128)] = ""
    """Which documents these are: blended answers over each collection of a tenant are judged apart."""
    steer: Annotated[list[SpanBody], Field(max_length=MAX_SPANS)] | Name | None = None
    """Spans to stress or mute; `look`: stress the sentence that the question attends to, where one is
    clear; `look-always`: in any case; else the name of a recipe in the server's home, by which
    documents were steered beforehand."""
    steer_report: bool = False
    """Tell with the answer how far steering moved its tokens, and the answer without it."""
    share: Literal["exact", "published", "best"] | None = None
    """May a sibling's KV stand in, within the limits that are set? Without it: as the settings say."""
    keep: Literal["nothing", "shared", "all"] = "all"
    """`shared` leaves out the last message and the answer, which only a next turn would use."""
    max_kl: Annotated[float, Field(ge=0)] | None = None
    """How far lossy codecs may move the answer by measurement (mean KL, nats); 0: not at all."""
    load_within_s: Annotated[float, Field(gt=0)] | None = None
    """By when stored KV is to be loaded; over a slow link a node then sends it smaller."""
    why: bool = False
    """Tell at which token the prompt left what is stored, and the likely reason."""


class DocumentBody(_Strict):
    """A document, as people write it, or as LangChain does (`page_content`, `metadata`)."""

    text: Text | None = None
    """The document; or `page_content`."""
    title: Text | None = None
    """Stands before the text, and names the document where `id` is not given."""
    page_content: Text | None = None
    """The document, as LangChain writes it."""
    metadata: dict[str, Any] | None = None
    """Not read, but for `source`, which names the document where nothing else does."""
    type: Literal["Document"] | None = None
    """LangChain's mark of a document."""
    id: Name | None = None
    """A name, which blending and traces tell."""


class PartRole(_Strict):
    """What a content part is for, when it is not simply part of the message."""

    role: Literal["document", "instruction", "question"]
    """A document leaves its message and stands before the conversation; an instruction becomes a
    system message."""
    id: Name | None = None
    """The document's name."""


class ContentPart(_Strict):
    type: Name
    """`text`; other kinds are refused."""
    text: Text | None = None
    """The part's text."""
    kdn: PartRole | None = None
    """What the part is for."""
    model_config = ConfigDict(extra="allow", strict=True, use_attribute_docstrings=True)


class MessageBody(_Open):
    role: Name
    """`system`, `developer` (read as `system`), `user`, `assistant` or `tool`."""
    content: Text | Annotated[list[ContentPart], Field(max_length=MAX_PARTS)] | None = None
    """A text, or parts that are texts."""
    name: Name | None = None
    """Not read."""
    tool_calls: list[ToolCallBody] | None = Field(None, max_length=MAX_PARTS)
    """Of the assistant: the tools that an answer called."""
    tool_call_id: Name | None = None
    """Of a tool: which call this is the result of. Results stand in the order of the calls."""


class JobBody(_Open):
    """What all bodies that ask the model have in common."""

    model: Name | None = None
    """The served model (the default) or one of its adapters; other names are refused (404)."""
    cache_salt: Salt | None = None
    """Whose KV this is: stored KV answers only requests of its salt (see security.md)."""
    priority: int | None = Field(None, ge=-MAX_COUNT, le=MAX_COUNT)
    """Lower is sooner, for the policies that look at it."""


class SamplingBody(JobBody, ConstrainedBody):
    """What chat and plain completions have in common."""

    max_tokens: Count | None = None
    """The most tokens of an answer; 512, or what the context leaves, where nothing is said."""
    temperature: float | None = Field(None, ge=0, le=2)
    """0 is greedy. The default of this and the next three is the model's own
    (generation_config.json), else greedy."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Draw among the likeliest tokens that hold this share together."""
    top_k: int | None = Field(None, ge=-1, le=MAX_COUNT)
    """Draw among so many tokens; 0 or -1: all."""
    min_p: float | None = Field(None, ge=0, le=1)
    """Leave out tokens that are less likely than this share of the likeliest one."""
    n: Count | None = None
    """Answers to each prompt."""
    seed: int | None = Field(None, ge=MIN_SEED, le=MAX_SEED)
    """The same seed repeats an answer; choice `i` of `n` is drawn with `seed + i`."""
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None = None
    """Texts that end an answer, and are left out of it."""
    stop_token_ids: list[TokenId] | None = Field(None, max_length=MAX_STOPS)
    """Tokens that end an answer."""
    ignore_eos: bool | None = None
    """Go on to `max_tokens`."""
    logit_bias: dict[str, float] | None = Field(None, max_length=MAX_BIASES)
    """Token id to what is added to its logit, -100 to 100."""
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    """Is taken off a token's logit for every time that the answer has it."""
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    """Is taken off the logit of every token that the answer has."""
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    """Above 1 tokens of prompt and answer become less likely, as in transformers."""
    min_tokens: int | None = Field(None, ge=0, le=MAX_COUNT)
    """The answer does not end before so many tokens."""
    include_stop_str_in_output: bool | None = None
    """The stop text that was met, or the text of one of `stop_token_ids`, ends the answer."""
    skip_special_tokens: bool | None = None
    """False: special tokens are part of the text."""
    truncate_prompt_tokens: Count | Literal[-1] | None = None
    """Keep so many tokens of a longer prompt, the last ones; -1: as many as the context holds."""
    prompt_logprobs: int | None = Field(None, ge=0, le=20)
    """Tell the log-probabilities of the prompt's tokens, with so many alternatives; not in a stream."""
    stream: bool | None = None
    """Server-sent events in place of one body."""
    stream_options: StreamOptions | None = None
    """What a stream tells at its end."""
    kdn: KdnOptions | None = None
    """What may be reused, and what is kept."""


class ChatBody(SamplingBody, TemplateBody):
    messages: list[MessageBody] = Field(min_length=1, max_length=MAX_MESSAGES)
    """The conversation, oldest first."""
    documents: list[DocumentBody | Text] | None = Field(None, max_length=MAX_DOCUMENTS)
    """Stand before the conversation, each reused wherever it was computed before."""
    max_completion_tokens: Count | None = None
    """The newer name of `max_tokens`."""
    logprobs: bool | None = None
    """Tell the log-probability of each token."""
    top_logprobs: int | None = Field(None, ge=0, le=20)
    """And those of so many alternatives."""


class CompletionBody(SamplingBody):
    prompt: (
        Text | Prompts | TokenIdList | Annotated[list[TokenIdList], Field(max_length=MAX_PROMPTS)]
    )
    """A text, token ids, or a list of either. Names of special tokens in a text become those tokens."""
    echo: bool | None = None
    """Begin each answer with its prompt; with `logprobs`, those of the prompt's tokens come too."""
    max_tokens: int | None = Field(None, ge=0, le=MAX_COUNT)
    """As for chat; 0 with `echo`: only the prompt, for its log-probabilities."""
    logprobs: int | None = Field(None, ge=0, le=20)
    """Tell log-probabilities, with so many alternatives."""
    best_of: Count | None = None
    """So many answers are made to a prompt, and the `n` likeliest per token come back; not in a stream."""
    suffix: Text | None = None
    """What stands after the answer; only for models with tokens that fill in the middle."""


class EmbeddingBody(_Open):
    input: Text | Inputs | TokenIdList | Annotated[list[TokenIdList], Field(max_length=MAX_INPUTS)]
    """A text, the embedder's own token ids, or a list of either."""
    model: Name | None = None
    """The embedder's name (see `/v1/models`)."""
    encoding_format: Literal["float", "base64"] | None = None
    """`base64`: float32, little-endian."""
    dimensions: Count | None = None
    """Only the embedder's own number."""
    truncate_prompt_tokens: Literal[-1] | None = None
    """-1: of a text that is too long for the embedder only the beginning is read."""


class ScoreBody(JobBody):
    """Pairs of texts under any of the names in use; or a query, items and label tokens."""

    text_1: Text | Questions | None = None
    """One text, or as many as `text_2`."""
    text_2: Text | Questions | None = None
    """What is paired with `text_1`."""
    queries: Text | Questions | None = None
    """Another name of `text_1`."""
    documents: Text | Questions | None = None
    """Another name of `text_2`."""
    data_1: Text | Questions | None = None
    """Another name of `text_1`."""
    data_2: Text | Questions | None = None
    """Another name of `text_2`."""
    instruction: Text | None = None
    """What makes a pair belong together."""
    query: Text | TokenIdList | None = None
    """With `items` and `label_token_ids`: what stands before each item, without a chat template."""
    items: Text | list[Text | TokenIdList] | None = Field(None, max_length=MAX_QUESTIONS)
    """Texts or token ids."""
    label_token_ids: list[TokenId] | None = Field(None, max_length=MAX_LABELS)
    """The tokens whose probabilities are told."""
    apply_softmax: bool = False
    """Shares among the labels, in place of probabilities among all tokens."""
    item_first: bool = False
    """The item stands before the query."""


class ClassifyBody(JobBody):
    input: Text | Questions
    """One text or many."""
    labels: list[Name] = Field(min_length=2, max_length=MAX_LABELS)
    """What a text may be; each must begin with a token of its own."""
    instruction: Text | None = None
    """What is asked."""


class DecisionBody(JobBody):
    """Yes/no questions about one text."""

    input: Text
    """The text."""
    questions: list[Text] = Field(min_length=1, max_length=MAX_QUESTIONS)
    """Each is answered with yes or no, and how likely yes is."""


class RankedBody(DocumentBody):
    """A document of a ranking, as some clients wrap it; what else it holds is not read."""

    model_config = ConfigDict(extra="allow", strict=True, use_attribute_docstrings=True)


class RerankBody(JobBody):
    """A query, and documents in Jina's, Cohere's or (`texts`) TEI's way."""

    query: Text
    """What is looked for."""
    documents: list[RankedBody | Text] | None = None
    """The candidates, in Jina's and Cohere's way."""
    texts: list[Text] | None = None
    """The candidates, in the way of text-embeddings-inference, which gets a plain list back."""
    top_n: Count | None = None
    """So many of the best; all where nothing is said."""
    return_documents: bool | None = None
    """The texts come back; so they do at `/v1/rerank` where nothing is said."""
    return_text: bool = False
    """The same for `texts`."""
    raw_scores: bool = False
    """Log-odds in place of probabilities."""
    truncate: bool = False
    """Cut documents that are too long, which are refused otherwise."""
    truncation: bool = False
    """Another name of `truncate`."""
    max_tokens_per_doc: Count | None = None
    """Cohere's: of a longer document only the beginning is read."""
    layout: Name = "document-first"
    """`document-first` reuses a document's KV for every query; `query-first` asks as most published
    rerankers were trained."""
    template: Name | None = None
    """One of kdn's own (see rerank.md)."""
    instruction: Text | None = None
    """What makes a document fit."""
    adapter: Literal["none"] | None = None
    """`none` ranks with the model alone, not with the adapter that was trained to rank with it."""


class TokenizeBody(_Strict):
    """Either `prompt`, or `messages` with their documents as a chat would be cut."""

    model: Name | None = None
    """The served model or one of its adapters."""
    prompt: Text | None = None
    """A text."""
    messages: list[MessageBody] | None = Field(None, max_length=MAX_MESSAGES)
    """A conversation."""
    documents: list[DocumentBody | Text] | None = Field(None, max_length=MAX_DOCUMENTS)
    """Documents before the conversation."""
    add_special_tokens: bool | None = None
    """False leaves out what a prompt begins with."""
    return_token_strs: bool | None = None
    """Tell each token's text too."""


class DetokenizeBody(_Strict):
    model: Name | None = None
    """The served model or one of its adapters."""
    tokens: TokenIdList
    """Token ids."""
