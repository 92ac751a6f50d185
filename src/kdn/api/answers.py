"""What the Python API hands out: an answer, and where it stands in the documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kdn.core import Finish, FinishReason, Stream, Token, TokenIds, Usage
from kdn.rag import Citation, Part, cite
from kdn.rag.metis import QueryReport

__all__ = [
    "NOT_IN_DOCUMENTS",
    "Answer",
    "Source",
    "SteerReport",
    "collect",
    "not_in_documents",
    "source_of",
    "sources_of",
]

NOT_IN_DOCUMENTS = "This is not in your documents."


@dataclass(frozen=True)
class Source:
    """A passage that supports an answer. `score` in 0..1 is how much of the answer it holds."""

    title: str
    heading: str
    text: str
    score: float
    source: str
    """The document's name in the library."""


@dataclass(frozen=True)
class SteerReport:
    """An answer beside the one that would have been given without steering."""

    kl: float
    """KL of the next token's distribution, plain to steered, in nats: the mean over the answer's first
    `num_compared` tokens; a lower bound, from 64 tokens at each."""
    nll: float | None
    """Mean NLL of these tokens with steering, in nats; None for an empty answer."""
    plain_nll: float | None
    """And without it."""
    num_compared: int
    """At most 16; of an empty answer the one position where its first token would stand."""
    plain_text: str
    """The answer without steering, drawn as the steered one was."""
    num_columns: int
    """Tokens that were marked; of a look, those of all its sentences."""


@dataclass(frozen=True)
class Answer:
    """Generated text and what became of the request. As a text it is the answer itself."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    token_ids: TokenIds
    tokens: tuple[Token, ...] = ()
    """Every token with its log-probabilities, when those were asked for."""
    sources: tuple[Source, ...] = ()
    in_documents: bool = True
    """False where `ask` found nothing in the documents that would answer: `text` says so."""
    steering: SteerReport | None = None
    """What steering did, when that was asked."""
    report: QueryReport | None = None
    """How a question about documents was answered, and why so."""

    def __str__(self) -> str:
        return self.text

    def _repr_markdown_(self) -> str:
        """How a notebook shows it: the answer, then the passages it rests on."""
        quotes = [
            f"> **{one.title}**{f' ({one.heading})' if one.heading else ''}: "
            + " ".join(one.text.split())
            for one in self.sources
        ]
        return "\n\n".join([self.text, *quotes])


def collect(stream: Stream, show: Callable[[str], None] | None = None) -> Answer:
    """Run a stream to its end; `show` is given each piece of text as it comes.

    If `show` or the caller is interrupted, the request is cancelled before the error goes on.
    """
    tokens: list[Token] = []
    pieces: list[str] = []

    def say(text: str) -> None:
        pieces.append(text)
        if show is not None and text:
            show(text)

    try:
        for event in stream:
            if isinstance(event, Finish):
                say(event.tail)
                ids = tuple(token.token_id for token in tokens)
                return Answer("".join(pieces), event.reason, event.usage, ids, tuple(tokens))
            tokens.append(event)
            say(event.text)
    except BaseException:
        stream.cancel()
        raise
    raise AssertionError("a stream ends with a Finish or an error")


def sources_of(answer: str, parts: Sequence[Part]) -> tuple[Source, ...]:
    """The passages of `parts` that an answer rests on, best first."""
    return tuple(map(source_of, cite(answer, parts)))


def source_of(citation: Citation) -> Source:
    """A passage as an answer names it."""
    return Source(
        title=citation.passage.title,
        heading=" > ".join(citation.passage.headings),
        text=citation.passage.text,
        score=citation.score,
        source=citation.passage.source,
    )


def not_in_documents(show: Callable[[str], None] | None = None) -> Answer:
    """The answer where the documents hold none: nothing was computed for it."""
    if show is not None:
        show(NOT_IN_DOCUMENTS)
    return Answer(NOT_IN_DOCUMENTS, FinishReason.STOP, Usage(0, 0), (), in_documents=False)
