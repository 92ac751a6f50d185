"""Blocks laid out as one text, and the sections found again by their offsets."""

from __future__ import annotations

from kdn.rag import Heading, Paragraph, compose
from kdn.rag.documents import Block


def test_sections_point_at_their_bodies() -> None:
    document = compose(
        "s",
        "t",
        [
            Paragraph("before"),
            Heading("One", 1),
            Paragraph("a"),
            Paragraph("b"),
            Heading("Inner", 2),
            Paragraph("c"),
            Heading("Two", 1),
            Paragraph("d"),
        ],
    )
    assert document.text == "before\n\nOne\n\na\n\nb\n\nInner\n\nc\n\nTwo\n\nd"
    assert [(s.headings, document.text[s.start : s.stop]) for s in document.sections] == [
        ((), "before"),
        (("One",), "a\n\nb"),
        (("One", "Inner"), "c"),
        (("Two",), "d"),
    ]


def test_a_heading_without_a_body_opens_no_section() -> None:
    document = compose("s", "t", [Heading("Empty", 1), Heading("Next", 1), Paragraph("x")])
    assert [section.headings for section in document.sections] == [("Next",)]


def test_blank_blocks_leave_no_trace() -> None:
    blocks: list[Block] = [Paragraph(" \n"), Heading("", 1), Paragraph("x"), Paragraph("")]
    document = compose("s", "t", blocks)
    assert document.text == "x"
    assert compose("s", "t", []).sections == ()
