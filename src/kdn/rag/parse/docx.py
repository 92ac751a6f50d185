"""Word documents (Office Open XML): the paragraphs, headings, lists and tables of their body.

ECMA-376, part 1, section 17.  Text boxes and notes at the foot are taken in; deleted text is not.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

from kdn.errors import DocumentError
from kdn.rag.bounds import MAX_TEXT_CHARS
from kdn.rag.documents import (
    Block,
    Heading,
    Paragraph,
    ParsedDocument,
    compose,
    too_much_text,
)
from kdn.rag.parse.grid import GridCell, grid_lines

__all__ = ["parse_docx"]

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_TITLE = "{http://purl.org/dc/elements/1.1/}title"
_XML_BYTES_A_CHAR = 16
"""Markup may be so many times as long as the text in it."""
_LEVEL = re.compile(r"heading\s*([1-9])", re.IGNORECASE)
_PARTS = ("word/document.xml", "word/footnotes.xml", "word/endnotes.xml")


def parse_docx(
    source: str, path: Path, data: bytes, *, max_chars: int = MAX_TEXT_CHARS
) -> ParsedDocument:
    """Titled by the document's own title, else by its first top heading, else by the file's name.

    Raises DocumentError for a file that is no such document, or unpacks to markup of more than
    `max_chars` characters.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = set(archive.namelist())
            if _PARTS[0] not in names:
                raise DocumentError(f"{path}: no Word document; save it again as .docx, or as text")
            unpacked = sum(archive.getinfo(name).file_size for name in _PARTS if name in names)
            if unpacked > max_chars * _XML_BYTES_A_CHAR:
                raise too_much_text(path, max_chars)
            styles = _styles(archive, names)
            blocks = [
                block
                for name in _PARTS
                if name in names
                for block in _blocks(ET.fromstring(archive.read(name)), styles)  # noqa: S314
            ]
            title = _title(archive, names)
    except (zipfile.BadZipFile, ET.ParseError, NotImplementedError, RuntimeError) as error:
        raise DocumentError(
            f"{path}: cannot be read as a Word document ({error}); save it again"
        ) from error
    headings = (b.text for b in blocks if isinstance(b, Heading) and b.level == 1)
    return compose(source, title or next(headings, path.name), blocks)


def _title(archive: zipfile.ZipFile, names: set[str]) -> str:
    if "docProps/core.xml" not in names:
        return ""
    found = ET.fromstring(archive.read("docProps/core.xml")).find(_TITLE)  # noqa: S314
    return " ".join((found.text or "").split()) if found is not None else ""


def _styles(archive: zipfile.ZipFile, names: set[str]) -> dict[str, int]:
    """Styles of headings, by their ids: names are in English in every language, ids are not."""
    levels: dict[str, int] = {}
    if "word/styles.xml" not in names:
        return levels
    for style in ET.fromstring(archive.read("word/styles.xml")).iter(f"{_W}style"):  # noqa: S314
        name = style.find(f"{_W}name")
        told = name.get(f"{_W}val", "") if name is not None else ""
        if found := _LEVEL.fullmatch(told.strip()):
            levels[style.get(f"{_W}styleId", "")] = int(found.group(1))
        elif told.lower() == "title":
            levels[style.get(f"{_W}styleId", "")] = 1
    return levels


def _blocks(root: ET.Element, styles: dict[str, int]) -> Iterator[Block]:
    """Blocks in order; without recursion, for elements may be nested without end."""
    waiting = [iter(root)]
    while waiting:
        node = next(waiting[-1], None)
        if node is None:
            waiting.pop()
        elif node.tag == f"{_W}p":
            yield from _paragraph(node, styles)
        elif node.tag == f"{_W}tbl":
            yield Paragraph("\n".join(grid_lines(map(_cells, node.findall(f"{_W}tr")))))
        else:
            waiting.append(iter(node))


def _paragraph(node: ET.Element, styles: dict[str, int]) -> Iterator[Block]:
    text = _text(node)
    if not text.strip():
        return
    style = node.find(f"{_W}pPr/{_W}pStyle")
    name = style.get(f"{_W}val", "") if style is not None else ""
    level = styles.get(name)
    if level is not None:
        yield Heading(" ".join(text.split()), level)
    elif node.find(f"{_W}pPr/{_W}numPr") is not None:
        yield Paragraph(f"- {text.strip()}")
    else:
        yield Paragraph(text)


def _cells(row: ET.Element) -> list[GridCell]:
    cells = []
    for cell in row.findall(f"{_W}tc"):
        span = cell.find(f"{_W}tcPr/{_W}gridSpan")
        told = span.get(f"{_W}val", "1") if span is not None else "1"
        paragraphs = (_text(paragraph) for paragraph in cell.iter(f"{_W}p"))
        cells.append(
            GridCell(" ".join(" ".join(paragraphs).split()), int(told) if told.isdigit() else 1)
        )
    return cells


def _text(node: ET.Element) -> str:
    pieces = []
    for inner in node.iter():
        if inner.tag == f"{_W}t":
            pieces.append(inner.text or "")
        elif inner.tag == f"{_W}tab":
            pieces.append("\t")
        elif inner.tag in (f"{_W}br", f"{_W}cr"):
            pieces.append("\n")
    return "".join(pieces)
