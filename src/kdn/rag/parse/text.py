"""Plain text: paragraphs between blank lines, no headings."""

from __future__ import annotations

import re
from pathlib import Path

from kdn.rag.documents import Paragraph, ParsedDocument, compose
from kdn.rag.files import decode

__all__ = ["parse_text"]

_BLANK_LINES = re.compile(r"\n[^\S\n]*(?:\n[^\S\n]*)+|\f")


def parse_text(source: str, path: Path, data: bytes) -> ParsedDocument:
    """A document with one section, titled by its file name."""
    blocks = (Paragraph(piece.rstrip()) for piece in _BLANK_LINES.split(decode(path, data)))
    return compose(source, path.name, blocks)
