"""PDF: the text layer, page by page. A scan has none, and is refused."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdn.errors import DocumentError
from kdn.rag.documents import Block, Heading, Paragraph, ParsedDocument, compose

__all__ = ["parse_pdf"]

_MIN_LETTERS = 20
"""Fewer letters than this in a whole file means its pages are pictures."""
_HYPHEN = re.compile(r"(?<=[a-z])-\n(?=[a-z])")


def parse_pdf(source: str, path: Path, data: bytes) -> ParsedDocument:
    """One section a page, titled by the file's own title, else by the file's name.

    Raises DocumentError for a file that needs a password, is damaged, or holds no text.
    """
    import pypdf

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it reports every oddity of a file
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        locked = reader.is_encrypted and not reader.decrypt("")
        blocks = [] if locked else list(_pages(reader))
        title = str(reader.metadata.title or "") if not locked and reader.metadata else ""
    except Exception as error:  # pypdf raises whatever a damaged file leads it into
        raise DocumentError(
            f"{path}: cannot be read as PDF ({error}); print it to a new PDF"
        ) from error
    if locked:
        raise DocumentError(f"{path}: needs a password; save it without one and ingest it again")
    letters = sum(ch.isalnum() for b in blocks if isinstance(b, Paragraph) for ch in b.text)
    if letters < _MIN_LETTERS:
        raise DocumentError(
            f"{path}: no text in its {len(reader.pages)} pages, probably a scan;"
            " run text recognition (OCR) on it first"
        )
    return compose(source, title.strip() or path.name, blocks)


def _pages(reader: Any) -> Iterator[Block]:
    for number, page in enumerate(reader.pages, start=1):
        text = _clean(page.extract_text())
        if text.strip():
            yield Heading(f"Page {number}", 1)
            yield from map(Paragraph, _paragraphs(text))


def _clean(text: str) -> str:
    """Without lone surrogates and NULs, which fonts with broken tables give."""
    return _HYPHEN.sub("", text.encode("utf-8", "replace").decode().replace("\0", ""))


def _paragraphs(text: str) -> Iterator[str]:
    """A line that ends a sentence well before the margin ends a paragraph; others run on."""
    lines = [line.strip() for line in text.split("\n")]
    margin = max(map(len, lines))
    gathered: list[str] = []
    for line in lines:
        gathered.append(line)
        ends = line.endswith((".", ":", "?", "!")) and len(line) < 0.75 * margin
        if not line or ends:
            yield " ".join(gathered)
            gathered = []
    yield " ".join(gathered)
