"""HTML: the text a reader sees, read leniently; scripts, styles and navigation are dropped."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from selectolax.lexbor import LexborHTMLParser, LexborNode

from kdn.rag.documents import Block, Heading, Paragraph, ParsedDocument, compose
from kdn.rag.files import decode

__all__ = ["html_blocks", "parse_html"]

_DROPPED = [
    "script", "style", "nav", "noscript", "template", "svg", "iframe", "object", "form", "head",
]  # fmt: skip
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_BLOCKS = {
    "address", "article", "aside", "blockquote", "body", "caption", "dd", "details", "div", "dl",
    "dt", "fieldset", "figcaption", "figure", "footer", "header", "html", "li", "main", "ol", "p",
    "pre", "section", "summary", "table", "tbody", "tfoot", "thead", "tr", "ul", *_HEADINGS,
}  # fmt: skip
_BLANKS = re.compile(r"\s+")
_DECLARED = re.compile(rb"charset\s*=\s*[\"']?([\w.:-]+)", re.IGNORECASE)


def parse_html(source: str, path: Path, data: bytes) -> ParsedDocument:
    """Titled by its title element, else by its first top heading, else by the file's name."""
    declared = _DECLARED.search(data[:2048])
    text = decode(path, data, declared.group(1).decode("ascii") if declared else None)
    tree = LexborHTMLParser(text)
    element = tree.css_first("title")
    named = " ".join(element.text().split()) if element is not None else ""
    blocks = list(_blocks(tree))
    headings = (b.text for b in blocks if isinstance(b, Heading) and b.level == 1)
    return compose(source, named or next(headings, path.name), blocks)


def html_blocks(text: str) -> Iterator[Block]:
    """The blocks in a piece of HTML."""
    yield from _blocks(LexborHTMLParser(text))


def _blocks(tree: LexborHTMLParser) -> Iterator[Block]:
    """Runs of text under the same nearest block element; list items next to each other are one."""
    tree.strip_tags(_DROPPED)
    items: list[str] = []
    for owner, text in _runs(tree):
        if owner == "li":
            items.append(f"- {text}")
            continue
        if items:
            yield Paragraph("\n".join(items))
            items = []
        level = _HEADINGS.get(owner)
        yield Paragraph(text) if level is None else Heading(text, level)
    if items:
        yield Paragraph("\n".join(items))


def _runs(tree: LexborHTMLParser) -> Iterator[tuple[str, str]]:
    """(tag of the nearest block element, text), in document order. Deep nesting costs no stack."""
    pieces: list[str] = []
    owner, cell, tag = -1, -1, ""
    root = tree.root
    for node in root.traverse(include_text=True) if root is not None else ():
        if node.tag == "br":
            pieces.append("\n")
        if node.tag != "-text":
            continue
        block, its_cell = _owner(node)
        if block.mem_id != owner:
            yield from _run(tag, pieces)
            pieces, owner, tag = [], block.mem_id, block.tag or ""
        elif its_cell != cell:
            pieces.append(" | ")
        cell = its_cell
        text = node.text(deep=False) or ""
        pieces.append(text if block.tag == "pre" else _BLANKS.sub(" ", text))
    yield from _run(tag, pieces)


def _owner(node: LexborNode) -> tuple[LexborNode, int]:
    """The nearest block element above a text, and the table cell in between (0 for none)."""
    cell, parent = 0, node.parent
    while parent is not None and parent.tag not in _BLOCKS:
        if parent.tag in {"td", "th"}:
            cell = parent.mem_id
        node, parent = parent, parent.parent
    return (parent if parent is not None else node), cell


def _run(tag: str, pieces: list[str]) -> Iterator[tuple[str, str]]:
    joined = "".join(pieces)
    lines = joined.split("\n") if tag == "pre" else [line.strip() for line in joined.split("\n")]
    text = "\n".join(line.rstrip() for line in lines).strip("\n")
    if text.strip(" |\n"):
        yield tag, text
