"""What kdn makes in its home is its owner's alone, whatever the user's umask allows."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdn.machine.files import make_tree_private
from tests.cli.program import kdn
from tests.model.test_gguf import write_gguf


@pytest.fixture
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def open_to_others(folder: Path) -> list[str]:
    found = [folder, *folder.rglob("*")]
    return [
        f"{path} {stat.S_IMODE(path.stat().st_mode):o}"
        for path in found
        if path.stat().st_mode & 0o077
    ]


def test_home_is_private(
    tiny_model: Callable[..., Path], tmp_path: Path, usual_umask: None
) -> None:
    home = tmp_path / "above" / "home"
    model = write_gguf(tiny_model("llama", max_position_embeddings=2048), tmp_path / "tiny.gguf")
    (tmp_path / "a.txt").write_text("The lock opens with the brass key.", "utf-8")
    (tmp_path / "t.csv").write_text("text\nhello\n", "utf-8")
    asked: list[tuple[str | Path, ...]] = [
        ("store", "put", tmp_path / "a.txt"),
        ("label", tmp_path / "t.csv", "-t", "{text}", "-c", "Y,N", "-o", tmp_path / "o.csv"),
    ]
    try:
        import lancedb  # noqa: F401

        asked.insert(0, ("ingest", tmp_path / "a.txt"))
    except ImportError:
        pass
    for words in asked:
        done = kdn(home, *words, "--model", model)
        assert done.code == 0, done.err
        assert open_to_others(home.parent) == []
    assert any(path.suffix == ".kdn" for path in home.rglob("*"))
    assert stat.S_IMODE((tmp_path / "o.csv").stat().st_mode) == 0o644  # the user's own file


def test_a_tree_becomes_private_and_links_out_of_it_are_left(
    tmp_path: Path, usual_umask: None
) -> None:
    outside, tree = tmp_path / "outside", tmp_path / "tree"
    outside.write_text("theirs", "utf-8")
    (tree / "deep").mkdir(parents=True)
    (tree / "deep" / "file").write_text("ours", "utf-8")
    (tree / "link").symlink_to(outside)
    make_tree_private(tree)
    modes = [stat.S_IMODE(p.stat().st_mode) for p in (tree, tree / "deep", tree / "deep" / "file")]
    assert modes == [0o700, 0o700, 0o600]
    assert stat.S_IMODE(outside.stat().st_mode) == 0o644
