"""reStructuredText: docutils' tree to blocks. Nothing outside the text is read, run or fetched.

Directives and roles that docutils does not know (Sphinx has many) keep their contents: their source
is taken from docutils' complaint and read once more.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdn.rag.documents import Block, Heading, Paragraph, ParsedDocument, compose
from kdn.rag.files import decode
from kdn.rag.parse.grid import GridCell, grid_lines

with suppress(ModuleNotFoundError):  # the extra `rag` brings it; no library opens without
    from docutils import nodes
    from docutils.core import publish_doctree
    from docutils.parsers.rst import Parser

    _SILENT = (
        nodes.comment, nodes.target, nodes.substitution_definition, nodes.pending, nodes.raw,
        nodes.image, nodes.meta, nodes.decoration, nodes.label, nodes.title,
    )  # fmt: skip

__all__ = ["parse_rst"]

_SETTINGS = {
    "_disable_config": True,  # no docutils.conf of the machine changes what a text means
    "file_insertion_enabled": False,
    "raw_enabled": False,
    "report_level": 5,  # complaints stay in the tree, out of the terminal
    "halt_level": 6,
    "syntax_highlight": "none",
    "smart_quotes": False,
    "doctitle_xform": False,
    "docinfo_xform": False,
    "sectsubtitle_xform": False,
    "line_length_limit": 1_000_000,
}
_PEP = re.compile(r"\APEP: *(\d+)\nTitle: *(.+(?:\n[ \t]+.+)*)")
_DIRECTIVE = re.compile(r"\A\.\. +(?:\|[^|]*\| +)?([\w:+.-]+)::[ \t]*(.*)(?:\n|\Z)")
_OPTION = re.compile(r"\A:[\w-]+:.*")
_ROLE = re.compile(r":[\w:+.-]+:`([^`]*)`")
_NOTE = re.compile(r"(\[[^\]]+\])_")
_TARGET = re.compile(r"\s*<[^>]*>\Z")
_MAX_NESTING = 8
_REFUSED = {"include", "raw", "image", "figure", "toctree"}
"""Directives that would read other files, and those without words of their own."""


def parse_rst(source: str, path: Path, data: bytes) -> ParsedDocument:
    """Titled by the header of a PEP, else by the first heading, else by the file's name."""
    text = decode(path, data)
    pep = _PEP.match(text)
    blocks = list(_read(text, level=0, nesting=0, headers=pep is not None))
    if pep:
        title = f"PEP {pep.group(1)} – {' '.join(pep.group(2).split())}"  # noqa: RUF001  PEP style
    else:
        title = next((b.text for b in blocks if isinstance(b, Heading)), path.name)
    return compose(source, title, blocks)


def _read(text: str, *, level: int, nesting: int, headers: bool) -> Iterator[Block]:
    tree = publish_doctree(text, parser=Parser(rfc2822=headers), settings_overrides=_SETTINGS)
    yield from _Walk(nesting).blocks(tree, level)


class _Walk:
    """One pass over a tree."""

    def __init__(self, nesting: int) -> None:
        self._nesting = nesting

    def blocks(self, parent: Any, level: int) -> Iterator[Block]:
        """What stands under a node, in order."""
        for node in parent.children:
            yield from self._block(node, level)

    def _block(self, node: Any, level: int) -> Iterator[Block]:  # noqa: C901  one case a kind
        match node:
            case nodes.section():
                title = node.next_node(nodes.title)
                if title is not None:
                    yield Heading(_inline(title).replace("\n", " "), level + 1)
                yield from self.blocks(node, level + 1)
            case nodes.system_message():
                yield from self._unknown(node, level)
            case nodes.field_list() if "rfc2822" in node["classes"]:
                return  # a PEP's header: its number and title are the document's title
            case nodes.topic() if "contents" in node["classes"]:
                return
            case nodes.literal_block() | nodes.doctest_block():
                yield Paragraph(node.astext())
            case nodes.line_block():
                yield Paragraph(node.astext())
            case nodes.paragraph() | nodes.term() | nodes.rubric() | nodes.caption():
                yield Paragraph(_flow(node))
            case nodes.bullet_list() | nodes.enumerated_list():
                yield Paragraph("\n".join(self._items(node, level)))
            case nodes.definition_list() | nodes.field_list() | nodes.option_list():
                yield Paragraph("\n".join(self._definitions(node, level)))
            case nodes.table():
                yield from self._table(node)
            case nodes.footnote() | nodes.citation():
                label = node.next_node(nodes.label)
                mark = f"[{label.astext()}] " if label is not None else ""
                yield Paragraph(mark + self._text(node, level))
            case nodes.Admonition():
                yield Paragraph(f"{node.tagname.capitalize()}: {self._text(node, level)}")
            case nodes.Text():
                yield Paragraph(node.astext())
            case _ if not isinstance(node, _SILENT):
                yield from self.blocks(node, level)

    def _text(self, node: Any, level: int) -> str:
        """All blocks under a node as lines."""
        return "\n".join(block.text for block in self.blocks(node, level))

    def _items(self, node: Any, level: int) -> Iterator[str]:
        numbered = isinstance(node, nodes.enumerated_list)
        for number, item in enumerate(node.children, start=node.get("start", 1)):
            mark = f"{number}. " if numbered else "- "
            yield mark + self._text(item, level).replace("\n", "\n" + " " * len(mark))

    def _definitions(self, node: Any, level: int) -> Iterator[str]:
        for item in node.children:
            parts = [child for child in item.children if not isinstance(child, _SILENT)]
            if not parts:
                continue
            terms = " ".join(_flow(part) for part in parts[:-1])
            body = self._text(parts[-1], level).replace("\n", "\n  ")
            yield f"{terms}: {body}" if terms else body

    def _table(self, node: Any) -> Iterator[Block]:
        rows = ([_cell(entry) for entry in row.children] for row in node.findall(nodes.row))
        yield Paragraph("\n".join(grid_lines(rows)))

    def _unknown(self, node: Any, level: int) -> Iterator[Block]:
        """What docutils could not read or run: its words are kept."""
        literal = node.next_node(nodes.literal_block)
        if literal is None:
            return
        source = literal.astext()
        found = _DIRECTIVE.match(source)
        if found is None:
            yield Paragraph(_without_rules(source))
            return
        if found.group(1) in _REFUSED:
            return
        if self._nesting >= _MAX_NESTING:
            yield Paragraph(source)
            return
        if found.group(2).strip():
            yield Paragraph(found.group(2))
        body = textwrap.dedent(source[found.end() :]).strip("\n").split("\n")
        while body and _OPTION.match(body[0]):
            body.pop(0)
        text = "\n".join(body)
        if text.strip():
            nesting = self._nesting + 1
            yield from _read(text, level=level, nesting=nesting, headers=False)


def _cell(entry: Any) -> GridCell:
    """docutils counts the columns and rows that a cell covers beyond its first."""
    text = " ".join(entry.astext().split())
    return GridCell(text, 1 + entry.get("morecols", 0), 1 + entry.get("morerows", 0))


def _without_rules(source: str) -> str:
    """The words of a table whose lines do not meet, a line a row."""
    lines = (line.strip() for line in source.split("\n"))
    rows = (line for line in lines if line.strip("+-=| "))
    return "\n".join(" | ".join(p.strip() for p in row.strip("|").split("|")) for row in rows)


def _flow(node: Any) -> str:
    return " ".join(_inline(node).split())


def _inline(node: Any) -> str:
    """The text of a paragraph: code keeps backticks, notes their brackets, roles their words."""
    match node:
        case nodes.Text():
            return str(node.astext())
        case nodes.literal():
            return f"`{node.astext()}`"
        case nodes.footnote_reference() | nodes.citation_reference():
            return f"[{node.astext()}]"
        case nodes.problematic():
            return _words_of(node.astext())
        case nodes.system_message() | nodes.image() | nodes.raw():
            return ""
        case _:
            return "".join(_inline(child) for child in node.children)


def _words_of(problem: str) -> str:
    """The words in markup that docutils could not resolve: an unknown role, a note elsewhere."""
    without_roles = _ROLE.sub(lambda role: f"`{_TARGET.sub('', role.group(1))}`", problem)
    return _NOTE.sub(r"\1", without_roles)
