"""HTML: the text a reader sees, read leniently; scripts, styles and navigation are dropped."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kdn.errors import DocumentError
from kdn.rag.bounds import MAX_NESTING
from kdn.rag.documents import Block, Heading, Paragraph, ParsedDocument, compose
from kdn.rag.encodings import declared_encoding
from kdn.rag.files import decode
from kdn.rag.parse.grid import GridCell, grid_lines

with suppress(ModuleNotFoundError):  # the extra `rag` brings it; no library opens without
    from selectolax.lexbor import LexborHTMLParser, LexborNode

__all__ = ["APART", "BLOCKS", "html_blocks", "parse_html"]

_DROPPED = [
    "script", "style", "nav", "noscript", "template", "svg", "iframe", "object", "head", "datalist",
]  # fmt: skip
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
BLOCKS = {
    "address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details",
    "dialog", "div", "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "header",
    "hgroup", "html", "legend", "li", "main", "menu", "ol", "option", "p", "pre", "search",
    "section", "summary", "table", "tbody", "textarea", "tfoot", "thead", "tr", "ul", *_HEADINGS,
}  # fmt: skip
"""Elements whose text stands apart from what is around them."""
_CELLS = {"td", "th"}
_LAYOUT = {"table", "pre", *_HEADINGS}
"""What a table holds only where it arranges a page, not data."""
APART = dict.fromkeys(("br", "hr"), "\n") | dict.fromkeys(
    ("audio", "button", "input", "meter", "progress", "select", "video"), " "
)
"""Elements in a line, and what keeps the words before, inside and after them apart."""
_GIVING = BLOCKS | {"-text", *APART}
"""Nodes that give text to a cell, or keep words of it apart."""
_LARGE_CELL_CHARS = 2000
_UNNESTED = {
    # These have no contents, or end by themselves, or end with the block around them.
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track",
    "wbr", "p", "li", "td", "th", "tr", "dt", "dd", "option", "optgroup", "thead", "tbody", "tfoot",
    "colgroup", "rt", "rp", "html", "head", "body", "a", "b", "big", "code", "em", "font", "i",
    "nobr", "s", "small", "strike", "strong", "tt", "u",
}  # fmt: skip
_TAG = re.compile(r"<(?:!--|(/?)([A-Za-z][^\s/>]*))")
_COMMENT_END = re.compile("-->")
_CODE_END = re.compile("</(?:script|style)", re.IGNORECASE)
_BLANKS = re.compile(r"\s+")


def parse_html(source: str, path: Path, data: bytes) -> ParsedDocument:
    """Titled by its title element, else by its first top heading, else by the file's name.

    Raises DocumentError for elements nested deeper than `MAX_NESTING`, before they are parsed.
    """
    text = decode(path, data, declared_encoding(data))
    if (depth := nesting(text)) > MAX_NESTING:
        raise DocumentError(
            f"{path}: its elements are nested {depth:,} deep and {MAX_NESTING} are read;"
            " save it as plain text"
        )
    tree = LexborHTMLParser(text)
    element = tree.css_first("title")
    named = " ".join(element.text().split()) if element is not None else ""
    blocks = list(_blocks(tree))
    headings = (b.text for b in blocks if isinstance(b, Heading) and b.level == 1)
    return compose(source, named or next(headings, path.name), blocks)


def html_blocks(text: str) -> Iterator[Block]:
    """The blocks in a piece of HTML."""
    yield from _blocks(LexborHTMLParser(text))


def nesting(text: str) -> int:
    """How deep elements stand in one another, counted from tags alone in one pass."""
    depth = deepest = at = 0
    while match := _TAG.search(text, at):
        at = match.end()
        name = (match.group(2) or "").lower()
        if not name:
            at = _after(text, _COMMENT_END, at)
        elif match.group(1):
            depth -= name not in _UNNESTED and depth > 0
        elif name in ("script", "style"):
            at = _after(text, _CODE_END, at)
        elif name not in _UNNESTED:
            depth += 1
            deepest = max(deepest, depth)
    return deepest


def _after(text: str, end: re.Pattern[str], at: int) -> int:
    found = end.search(text, at)
    return found.end() if found else len(text)


def _blocks(tree: LexborHTMLParser) -> Iterator[Block]:
    """Runs of text under the same nearest block element; list items next to each other are one."""
    tree.strip_tags(_DROPPED)
    items: list[str] = []
    for owner, text in _runs(tree.root):
        if owner in ("li", "option"):
            items.append(f"- {text}")
            continue
        if items:
            yield Paragraph("\n".join(items))
            items = []
        level = _HEADINGS.get(owner)
        yield Paragraph(text) if level is None else Heading(text, level)
    if items:
        yield Paragraph("\n".join(items))


def _runs(root: LexborNode | None) -> Iterator[tuple[str, str]]:
    """(tag of the nearest block element, text), in document order. Deep nesting costs no stack."""
    pieces: list[str] = []
    run = (-1, "")  # of the block element that the pieces stand under
    between = ""  # what is to stand before the next text of the same run
    waiting = [(iter([root] if root is not None else []), run, "")]
    while waiting:
        children, block, _ = waiting[-1]
        node = next(children, None)
        if node is None:
            between += waiting.pop()[2]
            continue
        tag = node.tag or ""
        if tag == "-text":
            if block != run:
                yield from _run(run[1], pieces)
                pieces, run, between = [], block, ""
            text = node.text(deep=False) or ""
            pieces.append(between + (text if block[1] == "pre" else _BLANKS.sub(" ", text)))
            between = ""
        elif tag == "table" and (lines := _table(node)) is not None:
            yield from _run(run[1], pieces)
            pieces, run, between = [], (-1, ""), ""
            yield from lines
        else:
            if tag in _CELLS and _follows_cell(node):
                between += " | "
            between += APART.get(tag, "")
            inner = (node.mem_id, tag) if tag in BLOCKS else block
            waiting.append((node.iter(include_text=True), inner, " " if tag in APART else ""))
    yield from _run(run[1], pieces)


def _follows_cell(node: LexborNode) -> bool:
    before = node.prev
    while before is not None and before.tag not in _CELLS:
        before = before.prev
    return before is not None


def _table(table: LexborNode) -> list[tuple[str, str]] | None:
    """The caption and the rows of a table of data; None for one that arranges a page."""
    caption: list[str] = []
    rows: list[list[tuple[LexborNode, list[str]]]] = []
    for node in table.traverse(include_text=True):
        tag = node.tag or ""
        if tag in _LAYOUT and node.mem_id != table.mem_id:
            return None
        if tag == "tr":
            rows.append([])
        elif tag in _CELLS and rows:
            rows[-1].append((node, []))
        elif tag in _GIVING:
            pieces = rows[-1][-1][1] if rows and rows[-1] else caption
            pieces.append((node.text(deep=False) or "") if tag == "-text" else " ")
    cells = [[_cell(node, pieces) for node, pieces in row] for row in rows]
    sizes = [len(cell.text) for row in cells for cell in row]
    if max(map(len, cells), default=0) < 2 or max(sizes) > _LARGE_CELL_CHARS:
        return None
    texts = (_flat(caption), "\n".join(grid_lines(cells)))
    return [("table", text) for text in texts if text]


def _cell(node: LexborNode, pieces: list[str]) -> GridCell:
    return GridCell(_flat(pieces), _span(node, "colspan"), _span(node, "rowspan"))


def _span(node: LexborNode, name: str) -> int:
    value = node.attributes.get(name) or ""
    return int(value) if value.isascii() and value.isdigit() and len(value) < 5 else 1


def _flat(pieces: list[str]) -> str:
    return " ".join("".join(pieces).split())


def _plain(line: str) -> str:
    return " ".join(line.split())


def _run(tag: str, pieces: list[str]) -> Iterator[tuple[str, str]]:
    joined = "".join(pieces)
    lines = joined.split("\n")
    kept = map(str.rstrip if tag == "pre" else _plain, lines)
    text = "\n".join(kept).strip("\n")
    if text.strip(" |\n"):
        yield tag, text
