"""Spans that a caller stresses or mutes: what was marked, checked, and as factors of columns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

from kdn.core import as_many
from kdn.errors import BadInput
from kdn.model import PlacedText

__all__ = ["LEAST", "MOST", "ColumnFactors", "MarkedSpan", "column_factors", "spans_of"]

LEAST, MOST = 0.01, 10.0
"""Weights beyond are clipped: attention to a span never falls below, or rises above, so many times."""
_ABSURD = 1000.0

ColumnFactors = tuple[tuple[int, float], ...]
"""Columns, ascending, and the factor of each."""


@dataclass(frozen=True)
class MarkedSpan:
    """A run of characters to stress (`weight` above 1) or to mute (below 1).

    Named by its `text`, wherever that stands in documents and messages, or by `start` and `stop`,
    characters of a `document` that is named by its number or id.  With `text`, `document` limits the
    search to that one.  Raises BadInput for a span that names neither or both, and for a weight that
    is no number from 0 to 1000; weights beyond 0.01 to 10 are clipped to them.
    """

    weight: float
    text: str | None = None
    document: int | str | None = None
    start: int | None = None
    stop: int | None = None

    def __post_init__(self) -> None:
        if not _is_number(self.weight, Real) or not 0 <= self.weight <= _ABSURD:
            raise BadInput(
                f"the weight of {self.named} is {self.weight!r:.40}; give a number from 0 to"
                f" {_ABSURD:g}: above 1 stresses, below 1 mutes"
            )
        named = self.document
        if named is not None and not isinstance(named, str) and not _is_number(named, Integral):
            raise BadInput(
                f"a span's document is {named!r:.40}; give its number, from 0, or its id"
            )
        if self.text is not None:
            self._check_text()
        else:
            self._check_offsets()

    @property
    def named(self) -> str:
        """The span as messages call it."""
        if self.text is not None:
            return f"the span {self.text!r:.60}"
        return f"the span {self.start}..{self.stop} of document {self.document!r:.40}"

    @property
    def clipped(self) -> float:
        """The weight that is used."""
        return min(max(float(self.weight), LEAST), MOST)

    def _check_text(self) -> None:
        if not isinstance(self.text, str) or not self.text.strip():
            raise BadInput(
                f"a span's text is {self.text!r:.60}; give words of a document or message"
            )
        if self.start is not None or self.stop is not None:
            raise BadInput(f"{self.named} has offsets too; give its text or its offsets")

    def _check_offsets(self) -> None:
        if self.document is None or self.start is None or self.stop is None:
            raise BadInput("a span needs a text, or a document with start and stop in characters")
        for name, value in (("start", self.start), ("stop", self.stop)):
            if not _is_number(value, Integral):
                raise BadInput(f"{name} of a span is {value!r:.40}; give a number of characters")
        if not 0 <= self.start < self.stop:
            raise BadInput(f"{self.named} is empty; start must be below stop, and 0 or more")


def spans_of(given: object) -> tuple[MarkedSpan, ...]:
    """Spans, or mappings with a span's fields, as spans. Raises BadInput for anything else."""
    return tuple(_span(one) for one in as_many(given, "spans to steer", MarkedSpan))


def column_factors(spans: Sequence[MarkedSpan], places: Sequence[PlacedText]) -> ColumnFactors:
    """The factor of every column that a span covers.

    A token that lies in a span in part gets the weight to the power of that part, so that moving a
    span by a character moves a factor by a little; its parts in two spans multiply.  Raises BadInput
    for a span that is in no text, and for spans that overlap.
    """
    found = [
        (place, start, stop, span) for span in spans for place, start, stop in _runs(span, places)
    ]
    found.sort(key=lambda run: (run[0].start, run[1]))
    for (place, _, stop, span), (other, start, _, later) in pairwise(found):
        if place is other and start < stop:
            raise BadInput(f"{span.named} and {later.named} overlap; mark each character once")
    logs: dict[int, float] = {}
    for place, start, stop, span in found:
        for position, share in place.shares(start, stop):
            logs[position] = logs.get(position, 0.0) + share * math.log(span.clipped)
    return tuple((position, math.exp(logs[position])) for position in sorted(logs))


def _span(given: object) -> MarkedSpan:
    if isinstance(given, MarkedSpan):
        return given
    known = [field.name for field in fields(MarkedSpan)]
    if not isinstance(given, Mapping) or not set(given) <= set(known):
        raise BadInput(f"a span is a mapping of {', '.join(known)}, not {given!r:.60}")
    if "weight" not in given:
        raise BadInput(f"the span {given!r:.60} has no weight; give one, such as 3")
    values: dict[str, Any] = dict(given)
    return MarkedSpan(**values)


def _runs(span: MarkedSpan, places: Sequence[PlacedText]) -> Iterator[tuple[PlacedText, int, int]]:
    """Every place of the span: a text, and its characters there."""
    within = [place for place in places if _is_of(span, place)]
    if not within and span.document is not None:
        names = [repr(p.name or p.document) for p in places if p.document is not None]
        there = f"there are {', '.join(names[:8])}" if names else "there is no document"
        raise BadInput(f"{span.named} names a document that is not here; {there}")
    if span.document is not None and len(within) > 1:
        raise BadInput(
            f"{span.named} names {len(within)} documents; give the number of one, from 0"
        )
    if span.text is None:
        yield _of_offsets(span, within[0])
        return
    num_found = 0
    for place in within:
        at = place.text.find(span.text)
        while at >= 0:
            num_found += 1
            yield place, at, at + len(span.text)
            at = place.text.find(span.text, at + len(span.text))
    if not num_found:
        where = "that document" if span.document is not None else "any document or message"
        raise BadInput(f"{span.named} is not in {where}; copy it from there, letter for letter")


def _of_offsets(span: MarkedSpan, place: PlacedText) -> tuple[PlacedText, int, int]:
    assert span.start is not None, "checked when the span was made"
    assert span.stop is not None, "checked when the span was made"
    if span.stop > len(place.text):
        raise BadInput(f"{span.named} ends behind the document's {len(place.text)} characters")
    if place.text[span.start : span.stop].isspace():
        raise BadInput(f"{span.named} holds white space alone; mark words")
    return place, span.start, span.stop


def _is_of(span: MarkedSpan, place: PlacedText) -> bool:
    """Is the span looked for in that text?"""
    if span.document is None:
        return True
    return place.document is not None and span.document in (place.document, place.name)


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
