"""The parts of an open model that HTTP needs, so that a test can join them with a scripted engine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from kdn.api import AskLibrary
from kdn.core import Constraint, Generator, Prompt, Sampling, TokenIds
from kdn.engine import EngineStat
from kdn.errors import BadInput, UnknownModel
from kdn.model import ChatOptions, Document, LoadedModel, Message, PlacedText, ToolFormat
from kdn.rag import Vectors
from kdn.rank import Asking
from kdn.reuse.steer import SteerRecipe
from kdn.reuse.why import Explainer

__all__ = [
    "PromptMaker",
    "ServedEmbedder",
    "ServedEngine",
    "ServedModel",
    "ServedModels",
    "StoreNumbers",
    "TextEmbedder",
    "Vocabulary",
]


class Vocabulary(Protocol):
    """Text to token ids and back."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def bos_ids(self) -> TokenIds:
        """What a prompt that follows no template begins with; often nothing."""

    def encode(self, text: str, *, special: bool = False) -> TokenIds:
        """With `special`, names of special tokens in the text become those tokens."""

    def decode(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        """Special tokens are left out unless `special`."""

    def token_text(self, token_id: int) -> str:
        """One token as text; half a character reads as U+FFFD."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of UTF-8 that the token stands for; those of an answer's tokens join to it."""


class PromptMaker(Protocol):
    """Conversations as prompts. Safe from several threads."""

    @property
    def tool_format(self) -> ToolFormat:
        """How the model writes calls of tools."""

    def reads(self, name: str) -> bool:
        """Does the chat template look at a variable of that name?"""

    def repeating(self) -> PromptMaker:
        """The same for many conversations that share texts, each of which is tokenised once."""

    def segments(
        self,
        messages: Sequence[Message],
        documents: Sequence[Document] = (),
        salt: str = "",
        options: ChatOptions | None = None,
    ) -> Prompt:
        """The conversation as segments, ready for an answer. Turns remembered under `salt` hit."""

    def places(
        self, prompt: Prompt, messages: Sequence[Message], documents: Sequence[Document] = ()
    ) -> list[PlacedText]:
        """Where the texts stand in the prompt that `segments` made of them, documents first."""

    def remember(self, salt: str, text: str, token_ids: TokenIds) -> None:
        """Keep the ids of an answer, so that it hits when a client sends it back as history.

        Not where they say more or less than `text`.
        """


class ServedEngine(Generator, Protocol):
    """Runs requests, and says how it is. Safe from several threads."""

    @property
    def is_running(self) -> bool:
        """False once it has stopped for good."""

    def stat(self) -> EngineStat: ...


class TextEmbedder(Protocol):
    """Token ids of texts, and unit vectors of token ids. Safe from several threads."""

    @property
    def dimension(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    def token_ids(self, text: str) -> list[int]:
        """All tokens of a text, between the mark that begins it and the one that ends it."""

    def embed_ids(self, ids: Sequence[Sequence[int]]) -> Vectors:
        """[texts, dimension]"""


@dataclass(frozen=True)
class ServedEmbedder:
    """An embedder that is installed, and opened on first use."""

    name: str
    max_tokens: int
    """Of one text, its two marks included."""
    open: Callable[[], TextEmbedder]


class MakeAsking(Protocol):
    """How documents are asked about a query. Raises BadInput for a name that is not known."""

    def __call__(
        self,
        query: str,
        *,
        layout: str,
        template: str | None,
        instruction: str | None,
        truncate: bool,
    ) -> Asking: ...


@dataclass(frozen=True)
class StoreNumbers:
    """What the store counts and holds, as far as /metrics tells it."""

    blocks: Mapping[str, int] = field(default_factory=dict)
    """By tier."""
    size_bytes: Mapping[str, int] = field(default_factory=dict)
    """By tier."""
    errors: Mapping[str, int] = field(default_factory=dict)
    """By tier, since opening: failures, damaged and lost blocks."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Since opening: hits, misses, corrupt, evicted and whatever else the store counts."""
    reuse_failures: Mapping[str, int] = field(default_factory=dict)
    """Errors of parts around an answer, which the answer went without, by step."""
    blend: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """What the quality guard has seen, by collection: compared, agreed, mean_kl, ratio.

    Only of the tenant without a salt: a tenant's names are its own.
    """
    blend_collections: int = 0
    """Collections that the quality guard judges, of all tenants."""
    money_usd: Mapping[str, float] = field(default_factory=dict)
    """`saved` and `spent` by the blocks that are held."""


def no_recipe(_adapter: str | None, _name: str) -> SteerRecipe:
    """Where no recipes are kept."""
    raise BadInput("this server keeps no steering recipes")


def _bind_name(name: str) -> tuple[str, object]:
    return name, None


@dataclass(frozen=True)
class ServedModel:
    """A model that is answered for over HTTP. What it is made of stays its owner's to close."""

    name: str
    adapters: Collection[str]
    """Names that may stand in place of `name` in a request; they may come and go."""
    max_context: int
    """The most tokens of prompt and answer together."""
    vocabulary: Vocabulary
    sampling: Sampling
    """How tokens are drawn where a request says nothing."""
    prompts: PromptMaker
    engine: ServedEngine
    compile: Callable[[Constraint], object]
    """Makes a constraint ready for requests. Waits; raises BadInput for one that cannot be honoured."""
    asking: MakeAsking
    reranker: Callable[[str, str | None, str | None], str | None]
    """The adapter that ranks, by layout, template and the name that the request gives, if any."""
    embedder: ServedEmbedder | None
    store_numbers: Callable[[], StoreNumbers]
    """May wait for the store; never called on the event loop."""
    no_numbers: StoreNumbers = field(default_factory=StoreNumbers)
    """Zeros under the names that `store_numbers` has, for scrapes before its first answer."""
    steer_recipe: Callable[[str | None, str], SteerRecipe] = no_recipe
    """For an adapter, the steering recipe of a name. Raises BadInput where there is none for its model."""
    why: Explainer | None = None
    """Says why prompts were not reused further; None where nothing is stored."""
    ask: AskLibrary | None = None
    """None: there are no documents to ask about."""
    bind: Callable[[str], tuple[str, object]] = _bind_name
    """What an adapter's name means now: what requests name in its place, and what is to be held so long."""
    loading: LoadedModel | None = None
    """None: its adapters are those that it began with."""

    @cached_property
    def weights(self) -> str | None:
        """A digest of what answers without an adapter depend on; None where it is not known."""
        return None if self.loading is None else self.loading.decoder.answers_digest(None)

    def weights_with(self, adapter: str) -> str | None:
        """As `weights`, with the adapter of that name or key; None also for one that has left."""
        if self.loading is None:
            return None
        try:
            found = self.loading.adapters.known(adapter)
        except UnknownModel:
            return None
        return self.loading.decoder.answers_digest(found)


class ServedModels:
    """The models of one server, by every name that a request may choose. Safe from several threads."""

    def __init__(self, first: ServedModel, *others: ServedModel) -> None:
        """The first one answers where a request names none."""
        self.first = first
        self.all = (first, *others)
        self.by_name = {one.name: one for one in reversed(self.all)}

    def names(self) -> list[str]:
        """All that a request may name, each once: each model, then its adapters."""
        every = (name for one in self.all for name in (one.name, *one.adapters))
        return list(dict.fromkeys(every))

    def adapted(self, name: str) -> ServedModel | None:
        """The model that has an adapter of that name; None where a model is called so."""
        if name in self.by_name:
            return None
        return next((one for one in self.all if name in one.adapters), None)
