"""Which paths are looked at, and why the others are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdn.errors import DocumentError
from kdn.rag.files import find_files, read_bytes
from kdn.rag.survey import survey


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


def test_a_survey_counts_without_parsing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc " * 1050)  # 4,200 bytes, about 1,000 tokens
    (tmp_path / "b.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "c.txt").write_bytes(b"\0\1\2")
    (tmp_path / "d.txt").write_text("")
    (tmp_path / "e.txt").write_text("y" * 9000)
    found = survey(
        [tmp_path],
        max_file_bytes=5000,
        kv_bytes_per_token=10,
        embed_tokens_per_s=100,
        prefill_tokens_per_s=50,
    )
    assert [path.name for path in found.files] == ["a.txt"]
    assert (found.num_bytes, found.num_tokens, found.kv_bytes) == (4200, 1000, 10_000)
    assert found.ingest_minutes == pytest.approx(1000 / 100 / 60)
    assert found.prefill_minutes == pytest.approx(1000 / 50 / 60)
    assert {Path(r.path).name for r in found.refused} == {"b.png", "c.txt", "d.txt", "e.txt"}
    assert survey([tmp_path]).kv_bytes is None
