"""Parsers: one a kind of file, all of them in `PARSERS`, each with what it may cost in `COSTS`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kdn.errors import DocumentError
from kdn.rag.bounds import LONG_TEXT_CHARS, MIB, MIN_LETTERS_SHARE, Cost
from kdn.rag.documents import ParsedDocument
from kdn.rag.files import source_of
from kdn.rag.parse.docx import parse_docx
from kdn.rag.parse.html import parse_html
from kdn.rag.parse.markdown import parse_markdown
from kdn.rag.parse.pdf import parse_pdf
from kdn.rag.parse.rst import parse_rst
from kdn.rag.parse.table import parse_csv
from kdn.rag.parse.text import parse_text

__all__ = ["COSTS", "PARSERS", "cost_of", "parse", "parser_for"]

Parser = Callable[[str, Path, bytes], ParsedDocument]
"""(source, path, contents) to a document. Raises DocumentError when it cannot."""

_AS_THEY_STAND = """
    .txt .text .log .org .adoc .tex .json .jsonl .ndjson .yaml .yml .toml .ini .cfg .conf .xml .css
    .py .pyi .js .jsx .mjs .ts .tsx .java .kt .scala .c .h .cc .cpp .cxx .hh .hpp .cs .go .rs .swift
    .rb .php .pl .lua .r .jl .hs .ml .ex .exs .erl .clj .dart .sh .bash .zsh .ps1 .sql .proto .tf
"""

PARSERS: dict[str, Parser] = {
    "": parse_text,
    **dict.fromkeys(_AS_THEY_STAND.split(), parse_text),
    ".csv": parse_csv,
    ".tsv": parse_csv,
    ".tab": parse_csv,
    ".docx": parse_docx,
    ".md": parse_markdown,
    ".markdown": parse_markdown,
    ".rst": parse_rst,
    ".rest": parse_rst,
    ".html": parse_html,
    ".htm": parse_html,
    ".xhtml": parse_html,
    ".pdf": parse_pdf,
}


_PLAIN = Cost(64 * MIB)
COSTS: dict[Parser, Cost] = {
    parse_text: _PLAIN,
    parse_html: Cost(64 * MIB, seconds_a_mib=1.5),
    parse_markdown: Cost(16 * MIB),
    parse_rst: Cost(4 * MIB, seconds_a_mib=10.0),
    parse_csv: Cost(64 * MIB),
    parse_docx: Cost(64 * MIB),
    parse_pdf: Cost(64 * MIB, seconds=30.0),
}


def cost_of(parser: Parser) -> Cost:
    """What a parser may take."""
    return COSTS[parser]


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
    except (DocumentError, MemoryError):
        raise
    except RecursionError as error:
        raise DocumentError(
            f"{path}: its parts are nested too deep to be read; save it as plain text"
        ) from error
    except Exception as error:  # a parsing library raises whatever a strange file leads it into
        raise DocumentError(
            f"{path}: cannot be read as {path.suffix or 'text'} ({type(error).__name__}: {error});"
            " save it again, or as plain text"
        ) from error
    if not document.sections:
        raise DocumentError(f"{path}: no text found in it; there is nothing to take in")
    _refuse_signs(path, document.text)
    return document


def _refuse_signs(path: Path, text: str) -> None:
    """A long text without words keeps an embedder busy for minutes, and nothing finds it."""
    if len(text) < LONG_TEXT_CHARS:
        return
    signs = len(text) - sum(map(str.isspace, text))
    if sum(map(str.isalnum, text)) < MIN_LETTERS_SHARE * signs:
        raise DocumentError(
            f"{path}: of its {signs:,} characters fewer than {MIN_LETTERS_SHARE:.0%} are letters or"
            " digits; there are no words to find in it"
        )
