"""Prompts: segments of token ids, each with a role."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import chain

from kdn.core.names import TokenIds

__all__ = ["Prompt", "Role", "Segment"]


class Role(StrEnum):
    """What a run of tokens is for."""

    PRELUDE = "prelude"
    DOCUMENT = "document"
    HISTORY = "history"
    INSTRUCTION = "instruction"
    QUESTION = "question"


@dataclass(frozen=True)
class Segment:
    """A run of tokens with one role; `source` names the document it came from, if any."""

    role: Role
    token_ids: TokenIds
    source: str | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class Prompt:
    """Segments in order. Tokens are never joined as text and cut again."""

    segments: tuple[Segment, ...]

    @cached_property
    def token_ids(self) -> TokenIds:
        return tuple(chain.from_iterable(segment.token_ids for segment in self.segments))

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    def spans(self) -> Iterator[tuple[Segment, int, int]]:
        """Each segment with its half-open range of positions."""
        start = 0
        for segment in self.segments:
            stop = start + segment.num_tokens
            yield segment, start, stop
            start = stop
