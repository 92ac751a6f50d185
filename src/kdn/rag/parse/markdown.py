"""Markdown: CommonMark with tables, read as a tree; markup is dropped, code kept as it stands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

from kdn.rag.documents import Block, Heading, Paragraph, ParsedDocument, compose
from kdn.rag.files import decode
from kdn.rag.parse.html import html_blocks

__all__ = ["parse_markdown"]

_FRONT_MATTER = re.compile(r"\A---[^\S\n]*\n(.*?\n)?(?:---|\.\.\.)[^\S\n]*(?:\n|\Z)", re.DOTALL)
_FRONT_TITLE = re.compile(r"^title:\s*[\"']?(.+?)[\"']?\s*$", re.MULTILINE | re.IGNORECASE)


def parse_markdown(source: str, path: Path, data: bytes) -> ParsedDocument:
    """Titled by its front matter, else by its first top heading, else by the file's name."""
    text = decode(path, data)
    front = _FRONT_MATTER.match(text)
    tree = SyntaxTreeNode(MarkdownIt("commonmark").enable("table").parse(_behind(text, front)))
    blocks = [block for child in tree.children for block in _blocks(child)]
    declared = _FRONT_TITLE.search(front.group(0)) if front else None
    headings = (b.text for b in blocks if isinstance(b, Heading) and b.level == 1)
    title = declared.group(1) if declared else next(headings, path.name)
    return compose(source, title, blocks)


def _behind(text: str, front: re.Match[str] | None) -> str:
    return text[front.end() :] if front else text


def _blocks(node: SyntaxTreeNode) -> Iterator[Block]:
    match node.type:
        case "heading":
            yield Heading(_inline(node), int(node.tag[1:]))
        case "paragraph":
            yield Paragraph(_inline(node))
        case "fence" | "code_block":
            yield Paragraph(node.content.rstrip())
        case "html_block":
            yield from html_blocks(node.content)
        case "bullet_list" | "ordered_list":
            yield Paragraph("\n".join(_list_lines(node)))
        case "table":
            yield Paragraph("\n".join(_rows(node)))
        case "blockquote":
            for child in node.children:
                yield from _blocks(child)
        case _:
            return  # rules and the like hold no text


def _list_lines(node: SyntaxTreeNode) -> Iterator[str]:
    start = int(node.attrs.get("start", 1))
    for index, item in enumerate(node.children):
        mark = f"{start + index}. " if node.type == "ordered_list" else "- "
        texts = [block.text for child in item.children for block in _blocks(child)]
        body = "\n".join(texts).replace("\n", "\n" + " " * len(mark))
        yield mark + body


def _rows(table: SyntaxTreeNode) -> Iterator[str]:
    for part in table.children:
        for row in part.children:
            yield " | ".join(_inline(cell) for cell in row.children)


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
            return ""
        case "image":
            return node.content
        case _:
            return "".join(_inline(child) for child in node.children)
