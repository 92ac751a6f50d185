"""What a folder's walk passes over: git's patterns, our option, links that lead out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdn.rag.files import find_files
from kdn.rag.ignore import Ignored


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("*.log", "a.log", True),
        ("*.log", "deep/down/a.log", True),
        ("*.log", "a.logs", False),
        ("/a.txt", "a.txt", True),
        ("/a.txt", "b/a.txt", False),
        ("b/a.txt", "b/a.txt", True),
        ("b/a.txt", "c/b/a.txt", False),
        ("**/a.txt", "c/b/a.txt", True),
        ("b/**/a.txt", "b/a.txt", True),
        ("b/**/a.txt", "b/c/d/a.txt", True),
        ("b/**", "b/c", True),
        ("b/**", "b", False),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("[ab].txt", "b.txt", True),
        ("[!ab].txt", "b.txt", False),
        ("[!ab].txt", "c.txt", True),
        ("a.b", "axb", False),
        (r"\#x", "#x", True),
        (r"\!x", "!x", True),
        ("# x", "# x", False),
        ("x   ", "x", True),
        ("[", "[", True),
    ],
)
def test_patterns_fit_as_gits(pattern: str, path: str, fits: bool) -> None:
    assert (Ignored([pattern]).judges(path, is_folder=False) is True) is fits


def test_the_last_pattern_decides_and_a_slash_means_folders() -> None:
    ignored = Ignored(["*.txt", "!keep.txt", "build/"])
    assert ignored.judges("a.txt", is_folder=False) is True
    assert ignored.judges("keep.txt", is_folder=False) is False
    assert ignored.judges("build", is_folder=True) is True
    assert ignored.judges("build", is_folder=False) is None


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def names(folder: Path, *exclude: str) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in find_files([folder], exclude).files]


def test_lists_of_inner_folders_count_there_and_the_nearest_decides(tmp_path: Path) -> None:
    write(tmp_path, a_txt="a", b_log="b", out__c_txt="c", sub__d_log="d", sub__e_txt="e")
    (tmp_path / ".gitignore").write_text("*.log\nout/\n")
    (tmp_path / "sub" / ".gitignore").write_text("!d.log\n/e.txt\n")
    assert names(tmp_path) == ["a.txt", "sub/d.log"]
    assert names(tmp_path, "a.*") == ["sub/d.log"]
    assert names(tmp_path, "!b.log", "sub/") == ["a.txt", "b.log"]


def test_a_file_that_is_named_is_taken_whatever_lists_say(tmp_path: Path) -> None:
    write(tmp_path, a_txt="a")
    (tmp_path / ".gitignore").write_bytes(b"\xef\xbb\xbf*.txt\r\n")
    assert names(tmp_path) == []
    assert [path.name for path in find_files(tmp_path / "a.txt", "*.txt").files] == ["a.txt"]


def test_a_list_that_is_a_pipe_or_a_device_is_passed_by(tmp_path: Path) -> None:
    """A folder of somebody else may hold there what has no end, or what nobody writes to."""
    write(tmp_path, a__a_txt="a", b__b_txt="b")
    (tmp_path / "a" / ".gitignore").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "b" / ".gitignore")
    assert names(tmp_path) == ["a/a.txt", "b/b.txt"]


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    write(tmp_path, outside__secret_txt="s", inside__a_txt="a", inside__b__c_txt="c")
    (tmp_path / "inside" / "file.txt").symlink_to(tmp_path / "outside" / "secret.txt")
    (tmp_path / "inside" / "all").symlink_to(tmp_path / "outside")
    (tmp_path / "inside" / "up").symlink_to(tmp_path)
    (tmp_path / "inside" / "in").symlink_to(tmp_path / "inside" / "b")
    found = find_files([tmp_path / "inside"])
    assert sorted(path.name for path in found.files) == ["a.txt", "c.txt"]
    assert sorted(Path(one.path).name for one in found.refused) == ["all", "file.txt", "up"]
    assert all("a link out of the folder" in one.reason for one in found.refused)
    named = find_files([tmp_path / "inside" / "file.txt"])
    assert [path.name for path in named.files] == ["secret.txt"]
