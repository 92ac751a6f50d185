"""Each kind of file, as it should be, as people write it, and as it should not be."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

import pypdf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdn.errors import DocumentError
from kdn.rag import ParsedDocument
from kdn.rag.parse import parse
from kdn.rag.parse.docx import parse_docx
from tests.rag.helpers import pdf

PEPS = Path(__file__).parents[2].parent / "shared" / "data" / "peps"


def read(name: str, text: str | bytes) -> ParsedDocument:
    return parse(Path("/docs") / name, text.encode() if isinstance(text, str) else text)


def bodies(document: ParsedDocument) -> list[tuple[tuple[str, ...], str]]:
    return [(s.headings, document.text[s.start : s.stop]) for s in document.sections]


# --- text ------------------------------------------------------------------------------------


def test_text_is_paragraphs_titled_by_its_file_name() -> None:
    document = read("a.txt", "one\ntwo\r\n \n\n\nthree\n")
    assert (document.source, document.title) == ("/docs/a.txt", "a.txt")
    assert document.text == "one\ntwo\n\nthree"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_with_or_without_a_mark_is_read(encoding: str) -> None:
    assert read("a.txt", "naïve → ключ".encode(encoding)).text == "naïve → ключ"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("naïve".encode("latin-1"), "save it as UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "binary data"),
        (b"\x01\x02\x03\x04 text", "binary data"),
        ("привет".encode("cp1251"), "save it as UTF-8"),
        (b"\xff\xfea", "not UTF-8"),  # half a character of UTF-16
    ],
)
def test_what_is_not_text_is_refused_with_advice(data: bytes, says: str) -> None:
    with pytest.raises(DocumentError, match=says):
        read("a.txt", data)


def test_an_unknown_ending_is_text_only_when_asked_for_by_name() -> None:
    path = Path("/docs/script.odd")
    assert parse(path, b"x = 1", named=True).text == "x = 1"
    with pytest.raises(DocumentError, match="by its own name"):
        parse(path, b"x = 1", named=False)


# --- Markdown --------------------------------------------------------------------------------

MARKDOWN = """---
title: "Front matter"
---
# Top *one*

Some [link](http://x.y) and `code`,
on two lines. ![a cat](cat.png)

- first
- second
  1. inner

| a | b |
|---|---|
| 1 | 2 |

```python
x = 1

y = 2
```

## Sub

> quoted

<div><script>evil()</script><p>plain</p></div>
"""


def test_markdown_loses_its_marks_and_keeps_its_words() -> None:
    document = read("a.md", MARKDOWN)
    assert document.title == "Front matter"
    assert bodies(document) == [
        (
            ("Top one",),
            (
                "Some link and `code`, on two lines. a cat\n\n"
                "- first\n- second\n  1. inner\n\na | b\n1 | 2\n\nx = 1\n\ny = 2"
            ),
        ),
        (("Top one", "Sub"), "quoted\n\nplain"),
    ]


def test_markdown_is_titled_by_its_first_top_heading_else_its_name() -> None:
    assert read("a.md", "# Hello\n\nx").title == "Hello"
    assert read("a.md", "## Deep\n\nx").title == "a.md"


# --- reStructuredText ------------------------------------------------------------------------

RST = """Title
=====

.. include:: {secret}

.. raw:: html
   :file: {secret}

.. csv-table:: t
   :file: {secret}

.. function:: foo(x)
   :noindex:

   Does :func:`bar <x.bar>` with ``code`` [1]_.

   .. versionadded:: 3.8
      Nested.

.. note:: Mind
   this.

==== ===
a    b
==== ===
1    2
==== ===

term
   meaning

- one

  1. inner

.. a comment

Broken `link and *emphasis

Sub
---

.. code-block:: python

   x = 1

   y = 2

.. [1] A note.
"""


def test_rst_reads_nothing_but_the_text_and_keeps_unknown_directives(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("SECRET")
    document = read("a.rst", RST.format(secret=secret))
    assert "SECRET" not in document.text
    assert document.title == "Title"
    assert bodies(document) == [
        (
            ("Title",),
            (
                "t\n\nfoo(x)\n\nDoes `bar` with `code` [1].\n\n3.8\n\nNested.\n\nNote: Mind this.\n\n"
                "a | b\n1 | 2\n\nterm: meaning\n\n- one\n  1. inner\n\n"
                "Broken `link and *emphasis"
            ),
        ),
        (("Title", "Sub"), "x = 1\n\ny = 2\n\n[1] A note."),
    ]


def test_a_pep_is_titled_by_its_header() -> None:
    document = read("pep.rst", "PEP: 20\nTitle: The Zen\n of Python\n\nAbstract\n========\n\nx\n")
    assert document.title == "PEP 20 – The Zen of Python"  # noqa: RUF001  PEPs write it so
    assert bodies(document) == [(("Abstract",), "x")]


def test_rst_that_nests_without_end_is_still_read() -> None:
    nested = "\n".join(f"{'   ' * depth}.. unknown::\n" for depth in range(40))
    document = read("a.rst", f"before\n\n{nested}\n{'   ' * 40}deep\n\nafter\n")
    assert document.text.startswith("before")
    assert document.text.endswith("after")


@pytest.mark.skipif(not PEPS.is_dir(), reason="the folder of PEPs is not here")
def test_every_pep_has_sections_and_no_leftover_markup() -> None:
    for path in sorted(PEPS.glob("*.rst"))[:6]:
        document = parse(path, path.read_bytes())
        assert len(document.sections) >= 5
        assert ".. " not in {line[:3] for line in document.text.split("\n")}
        assert "\n====" not in document.text


# --- HTML ------------------------------------------------------------------------------------

HTML = """<html><head><title> A  title </title><style>p{}</style></head><body>
<nav>menu</nav><script>evil()</script>
<h1>Top</h1><p>One <b>bold</b> line<br>broken<p>Two
<ul><li>first<li>second</ul>tail
<h2>Sub</h2><table><tr><td>a</td><td>b</td></tr><tr><td>1</td><td>2</td></tr></table>
<pre>x = 1
  y</pre></body></html>"""


def test_html_is_what_a_reader_sees() -> None:
    document = read("a.html", HTML)
    assert document.title == "A title"
    assert bodies(document) == [
        (("Top",), "One bold line\nbroken\n\nTwo\n\n- first\n- second\n\ntail"),
        (("Top", "Sub"), "a | b\n1 | 2\n\nx = 1\n  y"),
    ]


def test_html_in_the_encoding_it_declares() -> None:
    page = '<meta charset="iso-8859-1"><p>naïve</p>'
    assert read("a.html", page.encode("latin-1")).text == "naïve"
    wrong = '<meta charset="no-such"><p>naïve</p>'
    with pytest.raises(DocumentError, match="save it as UTF-8"):
        read("a.html", wrong.encode("latin-1"))


def test_html_nested_a_thousand_deep_is_read() -> None:
    assert "deep" in read("a.html", "<div>" * 1000 + "deep" + "</div>" * 1000).text


def test_html_without_text_is_refused() -> None:
    with pytest.raises(DocumentError, match="no text found"):
        read("a.html", "<script>x</script>")


# --- nothing is lost in silence --------------------------------------------------------------


@pytest.mark.parametrize("tag", ["br", "br/", "br /", "hr", "/p><p", "div", "/li><li"])
def test_html_inside_markdown_keeps_words_apart(tag: str) -> None:
    text = read(
        "a.md", f"First step<{tag}>Second step\n\n| a | b |\n|---|---|\n| one<{tag}>two | x |\n"
    ).text
    assert text.split("\n\n")[0].split() == ["First", "step", "Second", "step"]
    assert text.split("\n\n")[1] == "a | b\none two | x"


@pytest.mark.parametrize(
    "between",
    ["<hr>", "<input>", "<center>x</center>", "<button>x</button>", "<textarea>x</textarea>"],
)
def test_what_stands_between_words_of_html_keeps_them_apart(between: str) -> None:
    words = read("a.html", f"<body><form>First{between}second</form>").text.split()
    assert [word for word in words if word != "x"] == ["First", "second"]


def test_a_button_in_a_sentence_stays_in_its_line() -> None:
    assert read("a.html", "<p>Press <button>OK</button> now").text == "Press OK now"


def test_marks_inside_a_word_do_not_part_it() -> None:
    assert read("a.md", "<b>bo</b>ld and w<wbr>or<!-- x -->d").text == "bold and word"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("---\n\n# Intro\n\nFirst: it matters.\n\n---\n\nSecond.\n", "First: it matters."),
        ("---\nJust a line of words\n---\nmore\n", "Just a line of words"),
        ("---\n> quoted\n---\nmore\n", "quoted"),
        ("---\n- one\n- two\n---\nmore\n", "- two"),
        ("---\n# Intro\nFirst: it matters.\n---\nmore\n", "First: it matters."),
        ("---\nFirst part: it matters.\n---\nmore\n", "First part: it matters."),
    ],
)
def test_a_rule_at_the_beginning_opens_no_front_matter(text: str, kept: str) -> None:
    assert kept in read("a.md", text).text


@pytest.mark.parametrize(
    "matter", ["title: T\ntags:\n  - a\n\n# note\n- b", "'title': T", "title: T\nx: [1,\n  2\n]"]
)
def test_front_matter_is_not_text(matter: str) -> None:
    assert read("a.md", f"---\n{matter}\n---\nbody\n").text == "body"


@given(st.integers(1, 130), st.sampled_from(["- ", "> ", "1. "]))
@settings(max_examples=30)
def test_deep_markdown_is_kept_or_refused(depth: int, mark: str) -> None:
    lines = [
        (mark * number if mark == "> " else " " * len(mark) * (number - 1) + mark) + f"h{number}."
        for number in range(1, depth + 1)
    ]
    try:
        text = read("a.md", "\n".join(lines)).text
    except DocumentError:
        assert depth > 40
    else:
        assert all(f"h{number}." in text for number in range(1, depth + 1))


@pytest.mark.parametrize(
    "table",
    [
        "+-------------+-----+\n| re\u0301structured | yes |\n+-------------+-----+",
        "+----+\n| restructured | yes |\n+----+",
        "==== ===\nrestructured too wide\nyes x\n==== ===",
    ],
)
def test_a_table_that_docutils_refuses_keeps_its_words(table: str) -> None:
    text = read("a.rst", f"T\n=\n\n{table}\n\nAfter.\n").text
    assert "structured" in text
    assert "yes" in text
    assert text.endswith("After.")


def test_directives_nested_too_deep_are_kept_as_they_stand() -> None:
    nested = "\n".join(f"{'   ' * depth}.. unknown::\n" for depth in range(20))
    assert "deep" in read("a.rst", f"{nested}\n{'   ' * 20}deep\n").text


@pytest.mark.parametrize(
    ("label", "data", "text"),
    [
        ("iso-8859-1", b"\x93Q\x94 \x96 5 \x80", "“Q” – 5 €"),  # noqa: RUF001  as typeset
        ("latin1", b"\x85\x81", "…\x81"),
        ("US-ASCII", b"caf\xe9", "café"),
        ("windows-1251", "привет".encode("cp1251"), "привет"),
        ("gb2312", "中文镕".encode("gbk"), "中文镕"),
        ("shift_jis", "①".encode("cp932"), "①"),
        ("iso-2022-jp", "日本".encode("iso2022_jp"), "日本"),
        ("iso-8859-9", b"\x80", "€"),
        ("utf-16", "naïve".encode(), "naïve"),
        ("iso-8859-1", "naïve".encode(), "naïve"),
    ],
)
def test_a_page_is_decoded_as_browsers_do(label: str, data: bytes, text: str) -> None:
    assert read("a.html", b"<meta charset=%s><p>%s</p>" % (label.encode(), data)).text == text
    http = b'<meta http-equiv="Content-Type" content="text/html; charset=%s"><p>%s</p>'
    assert read("a.html", http % (label.encode(), data)).text == text


def test_an_xml_declaration_counts_and_a_comment_does_not() -> None:
    assert (
        read("a.xhtml", b'<?xml version="1.0" encoding="ISO-8859-1"?><p>caf\xe9</p>').text == "café"
    )
    commented = b"<!-- <meta charset=utf-7> --><meta charset=latin1><p>caf\xe9</p>"
    assert read("a.html", commented).text == "café"


def test_the_text_of_a_form_is_kept() -> None:
    page = "<title>V</title><form><h1>Reset</h1><label>Name</label><p>Hold the button.</p></form>"
    assert read("a.html", page).text == "Reset\n\nName\n\nHold the button."


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ("<tr><th>H1<th><th>H3<tr><td>1<td>2<td>3", "H1 |  | H3\n1 | 2 | 3"),
        ("<tr><td>a<td><tr><td>1<td>2", "a |\n1 | 2"),
        ("<tr><td>a<td>b<tr><td><td>2", "a | b\n | 2"),
        ("<tr><td colspan=2>a<td>c<tr><td>1<td>2<td>3", "a |  | c\n1 | 2 | 3"),
        ("<tr><td rowspan=2>a<td>b<tr><td>2", "a | b\n | 2"),
        ("<tr><td><p>1</p><td><td><p>3<br>4</p><tr><td>a<td>b<td>c", "1 |  | 3 4\na | b | c"),
        ("<tr><td>a<td>&nbsp;<td>c<tr><td>1<td> <td>3", "a | c\n1 | 3"),
    ],
)
def test_an_empty_cell_keeps_its_place(rows: str, text: str) -> None:
    assert read("a.html", f"<table>{rows}</table>").text == text


def test_a_table_that_arranges_a_page_is_read_as_a_page() -> None:
    inner = "<table><tr><td>1<td>2</table>"
    page = f"<table><tr><td><h1>Left</h1>words<td>{inner}</table>"
    assert bodies(read("a.html", page)) == [(("Left",), "words\n\n1 | 2")]


def test_markdown_and_rst_keep_empty_cells_too() -> None:
    assert read("a.md", "|a||c|\n|-|-|-|\n|1|2|3|\n").text == "a |  | c\n1 | 2 | 3"
    grid = "+---+---+---+\n| a |   | c |\n+---+---+---+\n|   | 2 | 3 |\n+---+---+---+\n"
    assert read("a.rst", grid).text == "a |  | c\n | 2 | 3"
    tall = "+---+---+\n| a | b |\n|   +---+\n|   | 2 |\n+---+---+\n"
    assert read("a.rst", tall).text == "a | b\n | 2"


def test_a_very_long_heading_is_a_paragraph() -> None:
    """It would be repeated in each passage under it."""
    document = read("a.md", f"# {'word ' * 300}\n\n## Short\n\nbody\n")
    assert [headings for headings, _ in bodies(document)] == [(), ("Short",)]
    assert len(document.title) <= 1000


@pytest.mark.parametrize("line", ["test example", "x", "1"])
def test_a_short_pdf_is_taken_in(line: str) -> None:
    assert read("a.pdf", pdf(line)).text.rstrip() == f"Page 1\n\n{line}"


def test_a_pdf_in_aes_with_an_empty_password_is_read(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf("A secret of no weight.")))
    writer.encrypt("", "owner", algorithm="AES-256")
    data = io.BytesIO()
    writer.write(data)
    assert "A secret of no weight." in read("a.pdf", data.getvalue()).text


# --- anything at all -------------------------------------------------------------------------

PIECES = [
    "<p>",
    "</",
    "<li",
    ".. x::",
    "\n",
    "   ",
    "`",
    "*",
    "[1]_",
    "|",
    "#",
    "> ",
    "- ",
    "--",
    "a",
]


@settings(max_examples=150)
@given(
    st.sampled_from([".md", ".rst", ".html", ".txt", ".pdf"]),
    st.lists(st.sampled_from(PIECES)).map(lambda pieces: "".join(pieces).encode()) | st.binary(),
)
def test_any_bytes_are_a_document_or_refused(suffix: str, data: bytes) -> None:
    try:
        document = parse(Path("/docs/a" + suffix), data)
    except DocumentError:
        return
    assert all(document.text[s.start : s.stop].strip() for s in document.sections)


# --- PDF -------------------------------------------------------------------------------------


def test_pdf_is_one_section_a_page() -> None:
    document = read("a.pdf", pdf("The quick brown fox jumps over the lazy dog and on", "and on."))
    assert bodies(document) == [
        (("Page 1",), "The quick brown fox jumps over the lazy dog and on and on.")
    ]


def test_a_scan_a_locked_and_a_torn_pdf_are_refused() -> None:
    with pytest.raises(DocumentError, match="OCR"):
        read("scan.pdf", pdf())
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf("Some words that nobody may read")))
    writer.encrypt("secret", algorithm="RC4-128")
    locked = io.BytesIO()
    writer.write(locked)
    with pytest.raises(DocumentError, match="password"):
        read("locked.pdf", locked.getvalue())
    with pytest.raises(DocumentError, match="cannot be read as PDF"):
        read("torn.pdf", b"%PDF-1.4\n" + b"garbage " * 50)


# --- Word documents and tables ---------------------------------------------------------------

WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
STYLES = (
    f'<w:styles xmlns:w="{WORD}"><w:style w:styleId="berschrift1"><w:name w:val="heading 1"/>'
    '</w:style><w:style w:styleId="T"><w:name w:val="Title"/></w:style></w:styles>'
)


def docx(body: str, **parts: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "word/document.xml",
            f'<w:document xmlns:w="{WORD}"><w:body>{body}</w:body></w:document>',
        )
        archive.writestr("word/styles.xml", STYLES)
        for name, text in parts.items():
            archive.writestr(f"word/{name}.xml", text)
    return data.getvalue()


def para(text: str, properties: str = "") -> str:
    return f"<w:p><w:pPr>{properties}</w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>"


def test_a_word_document_has_headings_lists_and_tables() -> None:
    style = '<w:pStyle w:val="berschrift1"/>'
    wide = '<w:tc><w:tcPr><w:gridSpan w:val="2"/></w:tcPr>' + para("wide") + "</w:tc>"
    cell = "<w:tc>" + para("{}") + "</w:tc>"
    row = "<w:tr>{}</w:tr>"
    body = (
        para("Top", style)
        + "<w:p><w:r><w:t>one</w:t><w:br/><w:t>two</w:t><w:delText>gone</w:delText></w:r></w:p>"
        + para("item", '<w:numPr><w:ilvl w:val="0"/></w:numPr>')
        + "<w:tbl>"
        + row.format(wide + cell.format("c"))
        + row.format(cell.format("1") + cell.format("2") + cell.format(""))
        + "</w:tbl>"
    )
    note = f'<w:footnotes xmlns:w="{WORD}"><w:footnote>{para("a note")}</w:footnote></w:footnotes>'
    document = read("a.docx", docx(body, footnotes=note))
    assert document.title == "Top"
    assert bodies(document) == [
        (("Top",), "one\ntwo\n\n- item\n\nwide |  | c\n1 | 2 |\n\na note"),
    ]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"PK no archive", "cannot be read as a Word document"),
        (docx("<w:p>")[:-30], "cannot be read as a Word document"),
        (docx("<w:p>"), "cannot be read as a Word document"),
        (docx(""), "no text found"),
    ],
)
def test_what_is_no_word_document_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(DocumentError, match=says):
        read("a.docx", data)


def test_a_word_document_that_unpacks_without_end_is_refused() -> None:
    with pytest.raises(DocumentError, match="more than 100 characters of text"):
        parse_docx("a.docx", Path("/d/a.docx"), docx(para("x" * 5000)), max_chars=100)


def test_a_row_of_a_table_is_understood_by_itself() -> None:
    text = read("a.csv", '\ufeffname,city,\nAda,"London,\n UK",x\n\nBob,,\n').text
    assert text == "name: Ada; city: London, UK; x\nname: Bob"
    assert read("a.tsv", "a\tb\n1\t2\n").text == "a: 1; b: 2"
    assert read("a.csv", "only,a,header\n").text == "only, a, header"
    with pytest.raises(DocumentError, match="row 3: 3 cells under 2 columns"):
        read("a.csv", "a,b\n1,2\n1,2,3\n")


def test_code_is_taken_from_folders_as_it_stands() -> None:
    assert parse(Path("/d/a.py"), b"def f():\n    return 1\n", named=False).text.startswith("def")


def test_a_short_table_leaves_longer_cells_to_others() -> None:
    """The limit of a cell is the whole process's."""
    limit = csv.field_size_limit()
    assert read("a.csv", "a,b\n1,2\n").text
    assert csv.field_size_limit() >= limit
