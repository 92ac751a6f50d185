"""One decoding of text files: marks, ends of lines, and what is refused."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import msgspec
import pytest

import kdn
from kdn.errors import BadInput
from kdn.machine.text import (
    counted,
    decode_unicode,
    has_mark,
    lines_of,
    normal_lines,
    read_json_lines,
    read_text,
)

SOURCE = Path(kdn.__file__).parent


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
    with pytest.raises(BadInput, match="longer than 3 bytes"):
        read_text(tmp_path / "latin", max_bytes=3)
    with pytest.raises(BadInput, match="Is a directory"):
        read_text(tmp_path)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="this system has no endless device")
def test_what_has_no_end_is_not_read_to_its_end() -> None:
    """A device has no size: 64 MiB and a byte are read of it, and no more."""
    with pytest.raises(BadInput, match=r"/dev/zero: longer than 67,108,864 bytes.*split it"):
        read_text(Path("/dev/zero"))


def test_a_pipe_is_a_text_like_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("one\r\ntwo",))
    writer.start()
    assert read_text(pipe) == "one\ntwo"
    writer.join()


def test_one_is_not_many() -> None:
    assert counted(0, "file") == "0 files"
    assert counted(1, "file") == "1 file"
    assert counted(1_000, "new token") == "1,000 new tokens"
    assert [counted(n, "query", "queries") for n in (1, 2)] == ["1 query", "2 queries"]


def test_messages_count_by_the_one_helper() -> None:
    """What people read of a command, an answer or a refusal says `1 file`, not `1 files`."""
    nouns = "files|documents|blocks|rows|parts|prompts|requests|queries|passages|questions|tokens"
    counts = re.compile(
        r"(?<![-{])\{[^{}'\"]*(?<!suffix)\} (?:new |more )?(?:NOUNS)\b(?!/| \{)".replace(
            "NOUNS", nouns
        )
    )
    apart = ("model_profile.py", "configuration.py", "report.py")  # a model's prompt, and ranges
    found = [
        f"{path.name}:{number}: {line.strip()}"
        for room in ("cli", "api", "rag", "rank")
        for path in sorted((SOURCE / room).rglob("*.py"))
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if counts.search(line) and '"""' not in line and path.name not in apart
    ]
    assert found == []


class Saying(msgspec.Struct):
    """A line of the files below."""

    said: str
    by: str = "nobody"


def test_lines_of_json_end_at_newlines_and_are_refused_by_number(tmp_path: Path) -> None:
    """U+2028 may stand within a text: it ends no line."""
    path = tmp_path / "sayings.jsonl"
    path.write_text('{"said": "one\u2028line"}\r\n{"said": "two", "by": "a"}\n', "utf-8")
    assert read_json_lines(path, Saying) == [Saying("one\u2028line"), Saying("two", "a")]
    path.write_text('{"said": "one"}\n{"by": "a"}\n', "utf-8")
    with pytest.raises(BadInput, match=r"line 2: .*give a JSON object with said, by on each line"):
        read_json_lines(path, Saying)
    path.write_text("")
    with pytest.raises(BadInput, match="is empty"):
        read_json_lines(path, Saying)
