"""Which paths are looked at, and why the others are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdn.clock import ManualClock
from kdn.errors import BadInput, DocumentError
from kdn.rag import Cutting, Library
from kdn.rag.files import find_files, read_bytes
from kdn.rag.reading import FileReader, ParsedLately, RawFile
from tests.rag.helpers import HashedWords, small_library, words


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"the text of {name}")


def test_a_folder_is_walked_in_order_without_what_is_hidden(tmp_path: Path) -> None:
    write(tmp_path, "b.txt", "a/z.md", "a/y.md", ".git/config", ".hidden.txt", "a/.x/k.txt")
    found = find_files([tmp_path])
    names = [path.relative_to(tmp_path).as_posix() for path in found.files]
    assert names == ["b.txt", "a/y.md", "a/z.md"]
    assert found.refused == []


def test_loops_and_second_ways_to_a_file_are_walked_once(tmp_path: Path) -> None:
    write(tmp_path, "a/x.txt")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "again.txt").symlink_to(tmp_path / "a" / "x.txt")
    assert [path.name for path in find_files([tmp_path, tmp_path / "a"]).files] == ["x.txt"]


def test_a_link_to_a_folder_is_judged_where_that_folder_lies(tmp_path: Path) -> None:
    """What `a` ignores is not ignored in `b`; what is ignored or hidden is not read through a link."""
    write(tmp_path, "b/x.md", "b/y.md", "secret/s.md", ".private/p.md", "old/new/o.md")
    write(tmp_path, "a/x.md", "a/own.md")
    (tmp_path / ".gitignore").write_text("secret/\nold/\n")
    (tmp_path / "a" / ".gitignore").write_text("x.md\n")
    (tmp_path / "b" / ".gitignore").write_text("y.md\n")
    for name, target in (("1", "b"), ("2", "secret"), ("3", ".private"), ("4", "old/new")):
        (tmp_path / "a" / name).symlink_to(tmp_path / target)
    found = find_files(tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for path in found.files]
    assert names == ["a/own.md", "b/x.md"]
    assert [Path(refusal.path).name for refusal in found.refused] == ["2", "3", "4"]
    assert "to take it in, name that" in found.refused[0].reason


def test_what_cannot_be_read_is_named_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    os.mkfifo(tmp_path / "pipe.txt")
    found = find_files([tmp_path, tmp_path / "missing.txt"])
    assert found.files == []
    reasons = {Path(r.path).name: r.reason for r in found.refused}
    assert "leads nowhere" in reasons["broken"]
    assert "leads nowhere" in reasons["self"]
    assert "pipe" in reasons["pipe.txt"]
    assert "no such file" in reasons["missing.txt"]
    assert all(r.path in r.reason for r in found.refused)


def test_empty_huge_and_vanished_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n ")
    (tmp_path / "huge.txt").write_text("x" * 101)
    with pytest.raises(DocumentError, match="empty"):
        read_bytes(tmp_path / "empty.txt")
    with pytest.raises(DocumentError, match="over the limit"):
        read_bytes(tmp_path / "huge.txt", max_bytes=100)
    with pytest.raises(DocumentError, match="cannot be read"):
        read_bytes(tmp_path / "gone.txt")


def test_a_name_that_is_no_utf8_is_refused_and_the_others_go_in(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    write(folder, "good.txt")
    for name in (b"caf\xe9.txt", b"caf\xe9.md"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_text("Espresso, please")
    library = small_library(tmp_path / "library")
    found, report = library.survey([folder]), library.ingest([folder])
    assert [Path(source).name for source in report.added] == ["good.txt"]
    assert [os.fsencode(Path(one.path).name) for one in report.refused] == [
        b"caf\xe9.md",
        b"caf\xe9.txt",
    ]
    assert "rename it" in report.refused[0].reason
    assert found.refused == report.refused


def test_a_text_that_the_tokenizer_refuses_is_left_out_alone(tmp_path: Path) -> None:
    def encode(text: str) -> list[int]:
        if "endless" in text:
            raise BadInput("the tokenizer did not end in time")
        return words(text)

    folder = tmp_path / "docs"
    write(folder, "endless.txt", "good.txt")
    library = Library.open(tmp_path / "library", HashedWords(), encode, ManualClock())
    found, report = library.survey([folder]), library.ingest([folder])
    assert [Path(source).name for source in report.added] == ["good.txt"]
    (refusal,) = report.refused
    assert refusal.reason == f"{folder / 'endless.txt'}: the tokenizer did not end in time"
    assert found.refused == report.refused


# --- survey ----------------------------------------------------------------------------------


def test_a_survey_says_what_an_ingest_then_does(tmp_path: Path) -> None:
    """One word is one token: 50 in text, 3 in Markdown of which 1 is a heading; b.pdf is broken."""
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.txt").write_text("word " * 50)
    (folder / "m.md").write_text("# Head\n\ntwo words\n")
    (folder / "b.pdf").write_bytes(b"%PDF-1.4 broken")
    (folder / "c.txt").write_bytes(b"\0\1\2")
    (folder / "d.txt").write_text("")
    library = small_library(tmp_path / "library")
    found = library.survey([folder], kv_bytes_per_token=10, embed_tokens_per_s=100)
    report = library.ingest([folder])
    assert [path.name for path in found.files] == ["a.txt", "m.md"]
    assert len(found.files) == len(report.added)
    assert found.num_tokens == found.num_new_tokens == report.num_tokens == 52
    assert (found.num_bytes, found.kv_bytes) == (268, 520)
    assert found.ingest_minutes == pytest.approx(52 / 100 / 60)
    assert found.refused == report.refused, "for the same reasons, in the same order"
    again = library.survey([folder], embed_tokens_per_s=100)
    assert (again.num_new_tokens, again.ingest_minutes) == (0, 0.0)
    assert again.num_tokens == sum(info.num_tokens for info in library.sources())


def test_of_very_many_files_a_survey_parses_a_sample(tmp_path: Path) -> None:
    """300 files of one kind: the estimate is within a tenth of what an ingest counts."""
    folder = tmp_path / "docs"
    folder.mkdir()
    for number in range(300):
        (folder / f"{number:03}.txt").write_text(f"word{number} and more " * (20 + number % 7))
    library = small_library(tmp_path / "library")
    estimate = library.survey([folder], sample_bytes=20_000).num_tokens
    assert estimate == pytest.approx(library.ingest([folder]).num_tokens, rel=0.1)


def test_what_a_survey_parsed_an_ingest_does_not_parse_again(tmp_path: Path) -> None:
    """Documents are handed over once, refusals too, and only for the same bytes."""
    lately, path = ParsedLately(max_chars=10), tmp_path / "a.md"
    path.write_text("words")
    broken = tmp_path / "b.pdf"
    broken.write_bytes(b"%PDF-1.4 broken")
    with FileReader(Cutting(), lately, 1000) as reader:
        file, bad = (reader.read(one, named=True) for one in (path, broken))
        first = reader.parse(file, hold=True)
        with pytest.raises(DocumentError) as why:
            reader.parse(bad, hold=True)
        reader._parsers.close()
        assert reader.parse(file) is first
        with pytest.raises(DocumentError) as again:
            reader.parse(bad)
        assert reader._parsers._child is None, "no process was begun again"
    assert str(again.value) == str(why.value)
    path.write_text("other words")
    assert reader.read(path, named=True).digest != file.digest
    for name in ("c", "d"):
        lately.add(RawFile(Path(name), True, b"", name), first)
    lately.add(RawFile(Path("e"), True, b"", "e"), first)
    assert lately.take(RawFile(Path("c"), True, b"", "c")) is None, "10 characters hold two of five"
    assert lately.take(RawFile(Path("e"), True, b"", "e")) is first
