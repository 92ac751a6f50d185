"""One parser a kind of file. All choices stand in `PARSERS`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kdn.errors import DocumentError
from kdn.rag.documents import ParsedDocument
from kdn.rag.files import source_of
from kdn.rag.parse.html import parse_html
from kdn.rag.parse.markdown import parse_markdown
from kdn.rag.parse.pdf import parse_pdf
from kdn.rag.parse.rst import parse_rst
from kdn.rag.parse.text import parse_text

__all__ = ["PARSERS", "parse", "parser_for"]

Parser = Callable[[str, Path, bytes], ParsedDocument]
"""(source, path, contents) to a document. Raises DocumentError when it cannot."""

PARSERS: dict[str, Parser] = {
    "": parse_text,
    ".txt": parse_text,
    ".text": parse_text,
    ".log": parse_text,
    ".md": parse_markdown,
    ".markdown": parse_markdown,
    ".rst": parse_rst,
    ".rest": parse_rst,
    ".html": parse_html,
    ".htm": parse_html,
    ".xhtml": parse_html,
    ".pdf": parse_pdf,
}


def parser_for(path: Path, data: bytes, *, named: bool) -> Parser:
    """The parser for a file. One asked for by name may be any text, whatever its ending.

    Raises DocumentError for a kind that kdn does not read.
    """
    if data.startswith(b"%PDF-"):
        return parse_pdf
    parser = PARSERS.get(path.suffix.lower(), parse_text if named else None)
    if parser is None:
        kinds = " ".join(sorted(suffix for suffix in PARSERS if suffix))
        raise DocumentError(
            f"{path}: {path.suffix} files are not taken from a folder (only {kinds});"
            " if it is text, ingest it by its own name"
        )
    return parser


def parse(path: Path, data: bytes, *, named: bool = True) -> ParsedDocument:
    """The document in a file's contents. Raises DocumentError when there is none in it."""
    parser = parser_for(path, data, named=named)
    try:
        document = parser(source_of(path), path, data)
    except DocumentError:
        raise
    except Exception as error:  # a parsing library raises whatever a strange file leads it into
        raise DocumentError(
            f"{path}: cannot be read as {path.suffix or 'text'} ({type(error).__name__}: {error});"
            " save it again, or as plain text"
        ) from error
    if not document.sections:
        raise DocumentError(f"{path}: no text found in it; there is nothing to take in")
    return document
