"""Sentences of documents as runs of positions, for looks and selections."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kdn.model import PlacedText

__all__ = ["sentence_positions", "sentence_spans"]

_END = re.compile(r"""[.!?]["')\]]*\s+(?=\S)|\n\s*""")
"""A mark with white space after it, or a new line."""
_FEWEST = 20
"""Characters that a sentence has at least; what is shorter, such as `Mr.`, goes on with the next one."""


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """The half-open ranges of characters that the sentences of a text have, in order."""
    found: list[tuple[int, int]] = []
    start = 0
    for end in [*(match.end() for match in _END.finditer(text)), len(text)]:
        if end - start >= _FEWEST:
            found.append((start, end))
            start = end
    if start < len(text) and found:
        found[-1] = (found[-1][0], len(text))
    elif start < len(text):
        found.append((start, len(text)))
    return [(start, start + len(text[start:end].rstrip())) for start, end in found]


def sentence_positions(places: Sequence[PlacedText]) -> tuple[range, ...]:
    """The positions of every sentence of the documents; of a token in two, the first has it."""
    found = []
    for place in places:
        if place.document is None:
            continue
        after = 0
        for start, stop in sentence_spans(place.text):
            own = [at for at, _ in place.shares(start, stop) if at >= after]
            if own:
                found.append(range(own[0], own[-1] + 1))
                after = own[-1] + 1
    return tuple(found)
