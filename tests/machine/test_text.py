"""One decoding of text files: marks, ends of lines, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdn.errors import BadInput
from kdn.machine.text import decode_unicode, has_mark, lines_of, normal_lines, read_text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_mark_is_no_part_of_the_text(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("naïve → ключ\r\nb\rc".encode(encoding))
    assert read_text(path) == "naïve → ключ\nb\nc"
    assert has_mark(path.read_bytes()) == (encoding != "utf-8")


def test_a_mark_inside_stays() -> None:
    assert decode_unicode("a\ufeffb".encode()) == "a\ufeffb"


def test_lines_end_at_newlines_only() -> None:
    assert lines_of("a\u2028b\r\nc\x0bd\n\ne") == ["a\u2028b", "c\x0bd", "", "e"]
    assert lines_of("a\n") == ["a"]
    assert lines_of("") == []
    assert normal_lines("a\r\n\rb") == "a\n\nb"


def test_what_is_no_text_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with pytest.raises(BadInput, match="not UTF-8"):
        read_text(tmp_path / "latin")
    with pytest.raises(BadInput, match="No such file"):
        read_text(tmp_path / "none")
    with pytest.raises(BadInput, match="4 bytes is over the limit of 3"):
        read_text(tmp_path / "latin", max_bytes=3)
    with pytest.raises(BadInput, match="Is a directory"):
        read_text(tmp_path)
