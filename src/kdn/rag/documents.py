"""What a parser hands over: plain text with its headings, and where each section of it stands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kdn.errors import DocumentError
from kdn.rag.bounds import MAX_HEADING_CHARS, MAX_TEXT_CHARS

__all__ = [
    "Block",
    "Heading",
    "Paragraph",
    "ParsedDocument",
    "Section",
    "compose",
    "too_much_text",
]

BLOCK_GAP = "\n\n"


@dataclass(frozen=True)
class Heading:
    """Opens a section. `level` 1 is the outermost; a skipped level is harmless."""

    text: str
    level: int


@dataclass(frozen=True)
class Paragraph:
    """A run of text that belongs together: a paragraph, a whole list, a table, a piece of code."""

    text: str


Block = Heading | Paragraph


@dataclass(frozen=True)
class Section:
    """The body under one heading, without its subsections: `document.text[start:stop]`.

    `headings` is the path to it, outermost first; empty for text before the first heading.
    """

    headings: tuple[str, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class ParsedDocument:
    """A file as text. `source` names it for good: the same file always has the same source."""

    source: str
    title: str
    text: str
    sections: tuple[Section, ...]


def compose(source: str, title: str, blocks: Iterable[Block]) -> ParsedDocument:
    """Lay blocks out as one text and note where each section's body begins and ends.

    Headings stand in the text on lines of their own; sections without a body are left out.  A
    heading of more than `MAX_HEADING_CHARS` is a paragraph, and a title ends there.  Raises
    DocumentError for more than `MAX_TEXT_CHARS`.
    """
    title = title[:MAX_HEADING_CHARS]
    pieces: list[str] = []
    sections: list[Section] = []
    path: list[Heading] = []
    start: int | None = None
    position = 0
    for block in blocks:
        text = block.text.strip() if isinstance(block, Heading) else block.text.strip("\n")
        if not text.strip():
            continue
        if isinstance(block, Heading) and len(text) <= MAX_HEADING_CHARS:
            _close(sections, path, start, position)
            start = None
            path = [outer for outer in path if outer.level < block.level]
            path.append(Heading(text, block.level))
        elif start is None:
            start = position
        pieces.append(text)
        position += len(text) + len(BLOCK_GAP)
        if position > MAX_TEXT_CHARS:
            raise too_much_text(source)
    _close(sections, path, start, position)
    return ParsedDocument(source, title, BLOCK_GAP.join(pieces), tuple(sections))


def too_much_text(name: object, max_chars: int = MAX_TEXT_CHARS) -> DocumentError:
    """The refusal of a file whose text is over the bound."""
    return DocumentError(f"{name}: it holds more than {max_chars:,} characters of text; split it")


def _close(
    sections: list[Section], path: Sequence[Heading], start: int | None, position: int
) -> None:
    """End the section that began at `start`, if one did, before the gap that was just laid."""
    if start is not None:
        headings = tuple(heading.text for heading in path)
        sections.append(Section(headings, start, position - len(BLOCK_GAP)))
