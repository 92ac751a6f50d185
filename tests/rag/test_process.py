"""Foreign parsers in a process of their own: their bounds, their deaths, and what is left alive."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pypdf
import pytest

from kdn.errors import DocumentError
from kdn.rag import bounds
from kdn.rag.parse import COSTS, parse, process
from kdn.rag.parse.child import ParseReply, read_message, write_message
from kdn.rag.parse.html import nesting
from kdn.rag.parse.markdown import parse_markdown
from kdn.rag.parse.pdf import parse_pdf
from kdn.rag.parse.process import ParserProcess
from kdn.rag.parse.rst import parse_rst
from tests.rag.helpers import pdf


@pytest.fixture(scope="module")
def parsers() -> Iterator[ParserProcess]:
    with ParserProcess() as found:
        yield found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.md", "# One\n\ntwo"),
        ("a.rst", "One\n===\n\ntwo"),
        ("a.html", "<h1>One</h1><p>two"),
        ("a.txt", "One\n\ntwo"),
    ],
)
def test_a_document_is_the_same_from_here_and_from_there(
    parsers: ParserProcess, name: str, text: str
) -> None:
    assert parsers.parse(Path("/d") / name, text.encode()) == parse(
        Path("/d") / name, text.encode()
    )


def test_a_refusal_there_is_the_refusal_here(parsers: ParserProcess) -> None:
    with pytest.raises(DocumentError) as here:
        parse(Path("/d/a.pdf"), b"%PDF-1.4 broken")
    with pytest.raises(DocumentError) as there:
        parsers.parse(Path("/d/a.pdf"), b"%PDF-1.4 broken")
    assert str(there.value) == str(here.value)


def test_plain_text_begins_no_process() -> None:
    with ParserProcess() as found:
        found.parse(Path("/d/a.txt"), b"words")
        assert found._child is None


def test_a_parser_that_does_not_end_is_ended_and_the_next_file_is_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """docutils takes time that grows with the square of open marks: minutes for this one."""
    monkeypatch.setitem(COSTS, parse_rst, bounds.Cost(4 * bounds.MIB, 1.0, 0.0))
    with ParserProcess() as found:
        with pytest.raises(DocumentError, match="did not end within 1 seconds of processor time"):
            found.parse(Path("/d/slow.rst"), b"*a " * 100_000)
        assert found.parse(Path("/d/next.rst"), b"words").text == "words"


def test_a_process_that_dies_costs_the_file_it_was_at() -> None:
    with ParserProcess() as found:
        found.parse(Path("/d/a.md"), b"words")
        assert found._child is not None
        os.kill(found._child.pid, signal.SIGKILL)
        with pytest.raises(DocumentError, match="ended with signal 9"):
            found.parse(Path("/d/b.md"), b"words")
        assert found.parse(Path("/d/b.md"), b"words").text == "words"


def test_a_process_that_is_silent_is_ended() -> None:
    with ParserProcess(wall_factor=0.01) as found:
        found._child = child = process._begin()
        os.kill(child.pid, signal.SIGSTOP)
        with pytest.raises(DocumentError, match="did not end"):
            found.parse(Path("/d/b.md"), b"words")
        assert child.returncode is not None


def test_what_a_pdf_unpacks_to_is_bounded() -> None:
    """Two pages of 40 letters: 80 characters and what joins them, of which 60 are read."""
    writer = pypdf.PdfWriter()
    for _ in range(2):
        writer.append(io.BytesIO(pdf("a" * 40)))
    data = io.BytesIO()
    writer.write(data)
    read = partial(parse_pdf, "a.pdf", Path("/d/a.pdf"), data.getvalue())
    assert len(read().sections) == 2
    with pytest.raises(DocumentError, match="more than 60 characters"):
        read(max_chars=60)
    with pytest.raises(DocumentError, match="2 pages, and 1 are read"):
        read(max_pages=1)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_process_may_not_write_files_nor_hold_much(parsers: ParserProcess) -> None:
    parsers.parse(Path("/d/a.md"), b"words")
    assert parsers._child is not None
    lines = Path(f"/proc/{parsers._child.pid}/limits").read_text("utf-8").split("\n")
    limits = {line[:25].strip(): line[25:].split()[:1] for line in lines}
    assert limits["Max data size"] == [str(bounds.PARSER_MEMORY_BYTES)]
    assert limits["Max file size"] == ["0"]


def test_a_file_over_its_kinds_bound_is_refused_before_it_is_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(COSTS, parse_markdown, bounds.Cost(10))
    with ParserProcess() as found:
        with pytest.raises(DocumentError, match="11 bytes, and 10 of its kind"):
            found.parse(Path("/d/a.md"), b"eleven byte")
        assert found._child is None


@pytest.mark.parametrize(
    ("text", "depth"),
    [
        ("<div><div>x</div></div><div>y</div>", 2),
        ("<p>a<p>b<p>c<li>d<br><img>", 0),
        ("<script>'<div><div><div>'</script><div>", 1),
        ("<!-- <div><div> --><ul><li><ul>", 2),
        ("<script><div><div>", 0),
        ("</div></div><div>", 1),
    ],
)
def test_nesting_is_counted_from_tags(text: str, depth: int) -> None:
    assert nesting(text) == depth


def test_deep_elements_are_refused_without_being_parsed(parsers: ParserProcess) -> None:
    with pytest.raises(DocumentError, match="nested 200,000 deep"):
        parsers.parse(Path("/d/a.html"), b"<div>" * 200_000 + b"x" + b"</div>" * 200_000)


def test_a_long_text_of_signs_is_refused(parsers: ParserProcess) -> None:
    runs = "".join("`" * i + " a " for i in range(1, 300))
    with pytest.raises(DocumentError, match="there are no words to find"):
        parsers.parse(Path("/d/a.md"), runs.encode())
    assert "numbers" in parsers.parse(Path("/d/t.txt"), b"numbers 1, 2, 3; " * 2000).text


def test_a_torn_message_is_none() -> None:
    file = io.BytesIO()
    write_message(file, ParseReply(refusal="no"))
    whole = file.getvalue()
    assert read_message(io.BytesIO(whole)) is not None
    assert [read_message(io.BytesIO(whole[:size])) for size in (0, 5, 9)] == [None] * 3
