"""What the server needs from the rest of kdn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kdn.core import Prompt, Request, Stream, TokenIds
from kdn.model import Document, Message
from kdn.rank import Asking

__all__ = ["Embedded", "Service", "ServiceLoad", "StoreNumbers", "Vocabulary"]


@dataclass(frozen=True)
class ServiceLoad:
    """How busy the engine is at this moment."""

    running: int
    waiting: int
    kv_used_share: float
    """Of the KV budget, 0 to 1."""


@dataclass(frozen=True)
class StoreNumbers:
    """What the store counts and holds, as far as /metrics tells it."""

    blocks: Mapping[str, int] = field(default_factory=dict)
    """By tier."""
    size_bytes: Mapping[str, int] = field(default_factory=dict)
    """By tier."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Since opening: hits, misses, corrupt, evicted and whatever else the store counts."""
    blend: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """What the quality guard has seen, by collection: compared, agreed, mean_kl, ratio."""
    money_usd: Mapping[str, float] = field(default_factory=dict)
    """`saved` and `spent` by the blocks that are held."""


@dataclass(frozen=True)
class Embedded:
    """One unit vector a text, in order."""

    vectors: tuple[tuple[float, ...], ...]
    num_tokens: int


class Vocabulary(Protocol):
    """Text to token ids and back."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str, *, special: bool = False) -> TokenIds:
        """With `special`, names of special tokens in the text become those tokens."""
        ...

    @property
    def bos_ids(self) -> TokenIds:
        """What a prompt that follows no template begins with; often nothing."""
        ...

    def decode(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        """Special tokens are left out unless `special`."""
        ...

    def token_text(self, token_id: int) -> str:
        """One token as text; half a character reads as U+FFFD."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of UTF-8 that the token stands for; those of an answer's tokens join to it."""
        ...


class Service(Protocol):
    """A model that can be talked to. Every method may be called from any thread."""

    @property
    def name(self) -> str: ...

    @property
    def adapters(self) -> Sequence[str]:
        """Names that may stand in place of `name` in a request."""
        ...

    @property
    def max_context(self) -> int:
        """The most tokens of prompt and answer together."""
        ...

    @property
    def vocabulary(self) -> Vocabulary: ...

    def prompt(
        self, messages: Sequence[Message], documents: Sequence[Document], salt: str
    ) -> Prompt:
        """The conversation as segments, ready for an answer. Turns remembered under `salt` hit."""
        ...

    def asking(
        self, query: str, layout: str, template: str | None, instruction: str | None, truncate: bool
    ) -> Asking:
        """How documents are asked about a query. Raises BadInput for a name that is not known."""
        ...

    def remember(self, salt: str, text: str, token_ids: TokenIds) -> None:
        """Keep the ids of an answer, so that it hits when a client sends it back as history."""
        ...

    def submit(self, request: Request) -> Stream:
        """Queue a request. Raises PromptTooLong before anything is computed."""
        ...

    def embed(self, texts: Sequence[str]) -> Embedded:
        """Raises MissingExtra when there is no embedder."""
        ...

    def load(self) -> ServiceLoad:
        """Raises EngineFailed when the engine has stopped."""
        ...

    def store_numbers(self) -> StoreNumbers: ...
