"""Markdown: CommonMark with tables, read as a tree; markup is dropped, code kept as it stands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kdn.errors import DocumentError
from kdn.rag.bounds import MAX_LEVELS
from kdn.rag.documents import Block, Heading, Paragraph, ParsedDocument, compose
from kdn.rag.files import decode
from kdn.rag.parse.grid import GridCell, grid_lines
from kdn.rag.parse.html import APART, BLOCKS, html_blocks

with suppress(ModuleNotFoundError):  # the extra `rag` brings it; no library opens without
    from markdown_it import MarkdownIt
    from markdown_it.tree import SyntaxTreeNode

__all__ = ["parse_markdown"]

_FRONT_MATTER = re.compile(r"\A---[^\S\n]*\n(.*?\n)?(?:---|\.\.\.)[^\S\n]*(?:\n|\Z)", re.DOTALL)
_FIRST_KEY = re.compile(r"(?:\"[^\"\n]+\"|'[^'\n]+'|[\w.-]+)[^\S\n]*:(?:\s|\Z)")
_YAML_LINE = re.compile(r"[\w\"'][^\n]*?:(?:\s|\Z)|\s|[-#\]}]|\Z")
_BREAKING = BLOCKS | {*APART, "td", "th"}
"""HTML between words that keeps them apart."""
_BREAKING_TAG = re.compile(r"</?([A-Za-z][A-Za-z0-9]*)")
_FRONT_TITLE = re.compile(r"^title:\s*[\"']?(.+?)[\"']?\s*$", re.MULTILINE | re.IGNORECASE)


def parse_markdown(source: str, path: Path, data: bytes) -> ParsedDocument:
    """Titled by its front matter, else by its first top heading, else by the file's name.

    Raises DocumentError for lists and quotations nested deeper than `MAX_LEVELS`.
    """
    text = decode(path, data)
    front = _front_matter(text)
    parser = MarkdownIt("commonmark", {"maxNesting": MAX_LEVELS}).enable("table")
    tokens = parser.parse(text[len(front) :])
    if max((token.level for token in tokens), default=0) >= MAX_LEVELS - 1:
        raise DocumentError(
            f"{path}: its lists or quotations are nested deeper than {MAX_LEVELS // 2};"
            " what stands inside would be lost; save it as plain text"
        )
    blocks = [block for child in SyntaxTreeNode(tokens).children for block in _blocks(child)]
    declared = _FRONT_TITLE.search(front)
    headings = (b.text for b in blocks if isinstance(b, Heading) and b.level == 1)
    title = declared.group(1) if declared else next(headings, path.name)
    return compose(source, title, blocks)


def _front_matter(text: str) -> str:
    """What stands between two rules at the very beginning, if it reads as YAML that names values.

    Its first line is a key of one word: a heading, a list or a sentence with a colon is text.
    """
    found = _FRONT_MATTER.match(text)
    inside = (found.group(1) or "").split("\n") if found else [""]
    if found is None or not _FIRST_KEY.match(inside[0]):
        return ""
    return found.group(0) if all(map(_YAML_LINE.match, inside)) else ""


def _blocks(node: SyntaxTreeNode) -> Iterator[Block]:
    match node.type:
        case "heading":
            yield Heading(" ".join(_inline(node).split()), int(node.tag[1:]))
        case "paragraph":
            lines = (line.strip() for line in _inline(node).split("\n"))
            yield Paragraph("\n".join(line for line in lines if line))
        case "fence" | "code_block":
            yield Paragraph(node.content.rstrip())
        case "html_block":
            yield from html_blocks(node.content)
        case "bullet_list" | "ordered_list":
            yield Paragraph("\n".join(_list_lines(node)))
        case "table":
            rows = (row for part in node.children for row in part.children)
            yield Paragraph("\n".join(grid_lines([_cell(c) for c in row.children] for row in rows)))
        case "blockquote":
            for child in node.children:
                yield from _blocks(child)
        case _:
            return  # rules and the like hold no text


def _cell(node: SyntaxTreeNode) -> GridCell:
    return GridCell(" ".join(_inline(node).split()))


def _list_lines(node: SyntaxTreeNode) -> Iterator[str]:
    start = int(node.attrs.get("start", 1))
    for index, item in enumerate(node.children):
        mark = f"{start + index}. " if node.type == "ordered_list" else "- "
        texts = [block.text for child in item.children for block in _blocks(child)]
        body = "\n".join(texts).replace("\n", "\n" + " " * len(mark))
        yield mark + body


def _inline(node: SyntaxTreeNode) -> str:
    """The text a reader sees; links keep their words, images their description."""
    match node.type:
        case "text":
            return node.content
        case "code_inline":
            return f"`{node.content}`"
        case "softbreak":
            return " "
        case "hardbreak":
            return "\n"
        case "html_inline":
            tag = _BREAKING_TAG.match(node.content)
            return "\n" if tag and tag.group(1).lower() in _BREAKING else ""
        case "image":
            return node.content
        case _:
            return "".join(_inline(child) for child in node.children)
