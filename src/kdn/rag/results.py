"""What the library says: passages found, parts for a prompt, and itself in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kdn.rag.cut import Passage

__all__ = ["Hit", "LibraryStat", "Part", "SourceInfo", "fitting", "with_hits"]


@dataclass(frozen=True)
class Hit:
    """A passage that was found. Higher scores are better, within one search only."""

    passage: Passage
    score: float
    """Hybrid: 1 is first by meaning and by words. Vector: cosine similarity. Text: BM25."""


@dataclass(frozen=True)
class Part:
    """One document segment of a prompt: up to about 1,000 tokens of consecutive passages.

    `text` is the same bytes at every use, so its tokens and their KV can be reused.
    """

    key: str
    source: str
    title: str
    text: str
    num_tokens: int
    passages: tuple[Passage, ...]
    """All passages the part is made of, in order."""
    hits: tuple[Hit, ...] = ()
    """Those among them that the question found, best first."""
    score: float = 0.0


@dataclass(frozen=True)
class SourceInfo:
    """A document as a list shows it."""

    source: str
    title: str
    size_bytes: int
    num_tokens: int
    num_passages: int
    num_parts: int
    ingested_at: float
    """Seconds since 1970."""


@dataclass(frozen=True)
class LibraryStat:
    """The library in numbers."""

    num_sources: int
    num_passages: int
    num_parts: int
    num_tokens: int
    size_bytes: int
    """On disk."""
    embedder: str


def with_hits(part: Part, hits: Sequence[Hit], score: float) -> Part:
    """The part with those hits that lie in it, and its score."""
    inside = {passage.key for passage in part.passages}
    matched = tuple(hit for hit in hits if hit.passage.key in inside)
    return replace(part, hits=matched, score=score)


def fitting(parts: Sequence[Part], max_tokens: int, max_parts: int | None) -> list[Part]:
    """Best first, each that still fits."""
    chosen: list[Part] = []
    room = max_tokens
    for part in parts:
        if part.num_tokens <= room and (max_parts is None or len(chosen) < max_parts):
            chosen.append(part)
            room -= part.num_tokens
    return chosen
