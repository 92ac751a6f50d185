"""What a reranker learns from: groups of queries and passages that belong together one to one."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Group", "Pair", "TrainingPassage"]


@dataclass(frozen=True)
class TrainingPassage:
    """A text and what it is called; `title` may be empty."""

    name: str
    title: str
    text: str

    @property
    def whole(self) -> str:
        """Title and text, as they are put to a model and to BM25."""
        return f"{self.title}\n{self.text}" if self.title else self.text


@dataclass(frozen=True)
class Pair:
    """A query and the text that answers it."""

    query: str
    text: str


Group = tuple[Pair, ...]
