"""Where the characters of messages and documents stand among a prompt's tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kdn.core import Prompt, Role, Segment, TokenIds

__all__ = ["Edges", "PlacedText"]

Edges = Sequence[tuple[int, int]]
"""By token, the half-open range of characters that it stands for."""


@dataclass(frozen=True)
class PlacedText:
    """A document or a message, and the prompt's tokens that say it."""

    text: str
    start: int
    """The position of its first token."""
    edges: Edges
    """By token, characters of `text`; tokens of one character that is cut share it."""
    document: int | None = None
    """Its number among the documents; None for a message."""
    name: str | None = None
    """The document's id."""

    @property
    def positions(self) -> range:
        return range(self.start, self.start + len(self.edges))

    def shares(self, start: int, stop: int) -> Iterator[tuple[int, float]]:
        """The positions whose tokens lie in characters [start, stop), and how much of each does.

        White space does not count, so that the space before a word does not make its token a partial
        one; a token of white space alone counts by all its characters.
        """
        for position, (a, b) in zip(self.positions, self.edges, strict=True):
            inside = range(max(a, start), min(b, stop))
            if not inside:
                continue
            whole = sum(not self.text[i].isspace() for i in range(a, b))
            part = sum(not self.text[i].isspace() for i in inside)
            share = part / whole if whole else len(inside) / (b - a)
            if share:
                yield position, share


def stripped_edges(text: str, edges: Edges, *, strips: bool) -> Edges:
    """Edges of the text without the white space around it, counted in the whole text."""
    shift = len(text) - len(text.lstrip()) if strips else 0
    return [(a + shift, b + shift) for a, b in edges]


def text_segments(prompt: Prompt, num_texts: int) -> list[tuple[Segment, int]]:
    """The segments that hold the texts, in order, each with its first position; none if they do not fit."""
    found = [(one, start) for one, start, _ in prompt.spans() if one.role is not Role.PRELUDE]
    return found if len(found) == num_texts else []


def find_run(wanted: TokenIds, within: TokenIds) -> int | None:
    """Where the wanted ids begin, or None."""
    for at in range(len(within) - len(wanted) + 1):
        if within[at : at + len(wanted)] == wanted:
            return at
    return None
