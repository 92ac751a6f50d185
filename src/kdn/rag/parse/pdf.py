"""PDF: the text layer, page by page. A scan has none, and is refused."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdn.errors import DocumentError
from kdn.machine.text import counted
from kdn.rag.bounds import MAX_PAGES, MAX_TEXT_CHARS
from kdn.rag.documents import (
    Block,
    Heading,
    Paragraph,
    ParsedDocument,
    compose,
    too_much_text,
)

__all__ = ["parse_pdf"]

_HYPHEN = re.compile(r"(?<=[a-z])-\n(?=[a-z])")


def parse_pdf(
    source: str,
    path: Path,
    data: bytes,
    *,
    max_pages: int = MAX_PAGES,
    max_chars: int = MAX_TEXT_CHARS,
) -> ParsedDocument:
    """One section a page, titled by the file's own title, else by the file's name.

    Raises DocumentError for a file that needs a password, is damaged, holds no text, or holds more
    pages or characters than `max_pages` and `max_chars`.
    """
    import pypdf
    from pypdf.errors import DependencyError

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it reports every oddity of a file
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        locked = reader.is_encrypted and not reader.decrypt("")
        num_pages = 0 if locked else len(reader.pages)
        blocks = [] if locked else list(_pages(path, reader, max_pages, max_chars))
        title = str(reader.metadata.title or "") if not locked and reader.metadata else ""
    except (DocumentError, MemoryError):
        raise
    except DependencyError as error:
        raise DocumentError(
            f"{path}: encrypted with AES, which takes another package; run: pip install 'kdn[rag]'"
        ) from error
    except Exception as error:  # pypdf raises whatever a damaged file leads it into
        raise DocumentError(
            f"{path}: cannot be read as PDF ({error}); print it to a new PDF"
        ) from error
    if locked:
        raise DocumentError(f"{path}: needs a password; save it without one and ingest it again")
    if not any(ch.isalnum() for b in blocks if isinstance(b, Paragraph) for ch in b.text):
        raise DocumentError(
            f"{path}: no text in its {counted(num_pages, 'page')}, probably a scan;"
            " run text recognition (OCR) on it first"
        )
    return compose(source, title.strip() or path.name, blocks)


def _pages(path: Path, reader: Any, max_pages: int, max_chars: int) -> Iterator[Block]:
    num_chars = 0
    if len(reader.pages) > max_pages:
        raise DocumentError(
            f"{path}: {counted(len(reader.pages), 'page')}, and {max_pages:,} are read; split it"
        )
    for number, page in enumerate(reader.pages, start=1):
        text = _clean(page.extract_text())
        num_chars += len(text)
        if num_chars > max_chars:  # before a file that unpacks without end fills the memory
            raise too_much_text(path, max_chars)
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
