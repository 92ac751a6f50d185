"""A document cut twice: into passages, which are searched, and into parts, which enter prompts.

Both cuts follow one rule, `gather`: units are taken together until the next would overflow, or
until enough is gathered and the next unit is a natural border.  Because borders are a matter of the
text itself, an edit moves the cuts near it and leaves the rest of the document as it was: what was
embedded stays embedded, and the KV of untouched parts stays valid.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from kdn.config import LibraryConfig
from kdn.errors import BadInput, DocumentError
from kdn.rag.documents import ParsedDocument, Section

__all__ = ["CutDocument", "CutPart", "Cutting", "Encode", "Passage", "cut", "gather"]

Encode = Callable[[str], Sequence[int]]
"""Text to token ids, by the tokenizer of the model that will read it."""

_DEFAULTS = LibraryConfig()
_PARAGRAPHS = re.compile(r"\n[^\S\n]*\n\s*")
_LINES = re.compile(r"\n+")
_SENTENCES = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=\S)")
_WORDS = re.compile(r"\s+")
_BORDERS = (_PARAGRAPHS, _LINES, _SENTENCES, _WORDS)


@dataclass(frozen=True)
class Cutting:
    """How large the pieces are, in tokens of the generator model."""

    passage_tokens: int = _DEFAULTS.passage_tokens
    part_tokens: int = _DEFAULTS.part_tokens


@dataclass(frozen=True)
class Passage:
    """A piece of one section, small enough to be found by what it says.

    `key` is a hash of the source and of all the rest, so equal keys mean nothing needs redoing.
    """

    key: str
    source: str
    title: str
    headings: tuple[str, ...]
    text: str
    num_tokens: int

    @property
    def index_text(self) -> str:
        """What is embedded and indexed: the passage under its title and headings."""
        return f"{' > '.join((self.title, *self.headings))}\n{self.text}"


@dataclass(frozen=True)
class CutPart:
    """Consecutive passages as the one text that enters a prompt, the same bytes at every use."""

    key: str
    text: str
    num_tokens: int
    passages: tuple[Passage, ...]


@dataclass(frozen=True)
class CutDocument:
    """All parts of a document in order; their passages in order are all its passages."""

    source: str
    title: str
    parts: tuple[CutPart, ...]

    @property
    def passages(self) -> tuple[Passage, ...]:
        return tuple(passage for part in self.parts for passage in part.passages)

    @property
    def num_tokens(self) -> int:
        return sum(part.num_tokens for part in self.parts)


@dataclass(frozen=True)
class _Span:
    """`document.text[start:stop]`, about `size` tokens; `border`: a cut before it is natural."""

    section: int
    start: int
    stop: int
    size: int
    border: bool


def gather(units: Iterable[_Span], most: int, enough: int) -> Iterator[list[_Span]]:
    """Runs of consecutive units of at most `most` tokens (a larger single unit stands alone).

    A run ends early, once it holds `enough`, before a unit that is a border.
    """
    run: list[_Span] = []
    size = 0
    for unit in units:
        if run and (size + unit.size > most or (unit.border and size >= enough)):
            yield run
            run, size = [], 0
        run.append(unit)
        size += unit.size
    if run:
        yield run


def cut(document: ParsedDocument, encode: Encode, cutting: Cutting) -> CutDocument:
    """All passages and parts of a document. Pure: the same document gives the same keys.

    Raises DocumentError where `encode` refuses some of its text.
    """
    try:
        parts = tuple(_parts(document, encode, cutting))
    except BadInput as error:
        raise DocumentError(f"{document.source}: {error}") from error
    return CutDocument(document.source, document.title, parts)


def _parts(document: ParsedDocument, encode: Encode, cutting: Cutting) -> Iterator[CutPart]:
    spans = [
        _joined(run)
        for number, section in enumerate(document.sections)
        for run in gather(
            _pieces(document.text, number, section, encode, cutting.passage_tokens),
            cutting.passage_tokens,
            cutting.passage_tokens // 2,
        )
    ]
    sized = _with_borders(document, spans, encode)
    seen = Counter[str]()
    room = max(1, cutting.part_tokens - len(encode(document.title)) - 2)
    for run in gather(sized, room, cutting.part_tokens // 2):
        yield _part(document, run, encode, seen)


def _pieces(text: str, number: int, section: Section, encode: Encode, most: int) -> Iterator[_Span]:
    """A section's paragraphs; one too long becomes lines, sentences, words, at last letters."""

    def split(start: int, stop: int, kind: int, border: bool) -> Iterator[_Span]:
        size = len(encode(text[start:stop])) if stop - start <= 16 * most else most + 1
        if size <= most:
            yield _Span(number, start, stop, size, border)
        elif kind == len(_BORDERS):
            middle = (start + stop) // 2
            if stop - start < 2:
                yield _Span(number, start, stop, size, border)
                return
            yield from split(start, middle, kind, border)
            yield from split(middle, stop, kind, border=False)
        else:
            for left, right in _between(text, start, stop, _BORDERS[kind]):
                yield from split(left, right, kind + 1, border and (kind == 0 or left == start))

    yield from split(section.start, section.stop, 0, border=True)


def _between(
    text: str, start: int, stop: int, border: re.Pattern[str]
) -> Iterator[tuple[int, int]]:
    left = start
    for match in border.finditer(text, start, stop):
        if match.start() > left:
            yield left, match.start()
        left = match.end()
    if stop > left:
        yield left, stop


def _joined(run: Sequence[_Span]) -> _Span:
    first = run[0]
    return _Span(first.section, first.start, run[-1].stop, sum(s.size for s in run), first.border)


def _with_borders(
    document: ParsedDocument, spans: Sequence[_Span], encode: Encode
) -> Iterator[_Span]:
    """Passages as units of parts: borders are first passages of sections, and one in four others.

    Which others is decided by a hash of the text, so that it does not depend on what stands before.
    The size takes in the headings a part prints before a section and the gap between paragraphs.
    """
    last = -1
    for span in spans:
        opens = span.section != last
        text = document.text[span.start : span.stop]
        heading = _heading(document, span.section) if opens else "\n\n"
        size = span.size + len(encode(heading)) + 2
        border = opens or _digest(text)[0] in "0123"
        yield _Span(span.section, span.start, span.stop, size, border)
        last = span.section


def _heading(document: ParsedDocument, section: int) -> str:
    """The line that a part prints above a section's text; nothing for text without headings."""
    headings = document.sections[section].headings
    return " > ".join(headings) + "\n" if headings else ""


def _part(
    document: ParsedDocument, run: Sequence[_Span], encode: Encode, seen: Counter[str]
) -> CutPart:
    pieces = [document.title]
    for first, last in _by_section(run):
        pieces.append(_heading(document, first.section) + document.text[first.start : last.stop])
    text = "\n\n".join(pieces) + "\n\n"
    passages = tuple(_passage(document, span, encode, seen) for span in run)
    key = _key("part", document.source, text, seen=seen)
    return CutPart(key, text, len(encode(text)), passages)


def _by_section(run: Sequence[_Span]) -> Iterator[tuple[_Span, _Span]]:
    """First and last span of each stretch of one section."""
    first = last = run[0]
    for span in run[1:]:
        if span.section != first.section:
            yield first, last
            first = span
        last = span
    yield first, last


def _passage(document: ParsedDocument, span: _Span, encode: Encode, seen: Counter[str]) -> Passage:
    text = document.text[span.start : span.stop]
    headings = document.sections[span.section].headings
    key = _key("passage", document.source, document.title, *headings, text, seen=seen)
    return Passage(key, document.source, document.title, headings, text, len(encode(text)))


def _key(*parts: str, seen: Counter[str]) -> str:
    """A hash of the parts; the same parts met again in one document get another."""
    digest = _digest(*parts)
    seen[digest] += 1
    return digest if seen[digest] == 1 else _digest(digest, str(seen[digest]))


def _digest(*parts: str) -> str:
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()
