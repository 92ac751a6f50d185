"""kdn ingest and ask: exit codes, refusals told once, sources by their path."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from kdn.cli.ingest import every_part, stop_on_interrupt
from kdn.errors import UnknownModel
from kdn.model import resolve
from kdn.rag import Part
from tests.cli.program import kdn


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path]) -> Path:
    try:
        resolve("minilm-l6", Path("no-home"))
    except UnknownModel:
        pytest.skip("the embedder's weights are not installed")
    return tiny_model("llama", max_position_embeddings=4096)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_nothing_that_can_be_read_is_a_failure(tmp_path: Path, home: Path, tiny: Path) -> None:
    (tmp_path / "broken.pdf").write_text("junk")
    (tmp_path / "empty").mkdir()
    for path in ("broken.pdf", "empty"):
        done = kdn(home, "ingest", tmp_path / path, "--model", tiny)
        assert done.code != 0, path
        assert "nothing was taken in" in done.err


def test_a_refusal_is_told_once_and_the_rest_goes_in(
    tmp_path: Path, home: Path, tiny: Path
) -> None:
    papers = tmp_path / "papers"
    papers.mkdir()
    (papers / "good.md").write_text("# Keys\n\nThe brass key hangs behind the clock.\n")
    (papers / "broken.pdf").write_text("junk")
    done = kdn(home, "ingest", papers, "--model", tiny)
    assert done.code == 0
    assert done.out.startswith("1 added, 1 refused\n")
    assert done.err.count("broken.pdf") == 1
    again = kdn(home, "ingest", papers, "--model", tiny)
    assert (again.code, again.out.split("\n")[0]) == (0, "1 unchanged, 1 refused")


def test_a_stop_is_heard_between_the_parts_that_a_recipe_steers() -> None:
    """The first Ctrl-C comes while the second of three parts is computed; the second would interrupt."""
    parts = [Part(f"{n}.md", f"{n}.md", f"Paper {n}", f"Text {n}", 2, ()) for n in range(3)]
    done: list[Part] = []

    def prefill(part: Part) -> None:
        done.append(part)
        if len(done) == 2:
            signal.raise_signal(signal.SIGINT)

    with stop_on_interrupt() as stopped:
        assert not every_part(parts, prefill, stopped)
    assert done == parts[:2]
    assert every_part(parts[2:], prefill, lambda: False)
    assert done == parts


def test_two_files_of_one_title_are_told_apart(tmp_path: Path, home: Path, tiny: Path) -> None:
    for name in ("one.md", "two.md"):
        (tmp_path / name).write_text(f"# Keys\n\nThe brass key of {name} hangs behind the clock.\n")
    assert kdn(home, "ingest", tmp_path / "one.md", tmp_path / "two.md", "--model", tiny).code == 0
    asked = ("ask", "Where is the brass key?", "--max-parts", "2", "--model", tiny)
    shape = kdn(home, *asked, "--max-tokens", "3", "--json").json
    assert {"question", "answer", "sources", "usage"} <= set(shape)
    assert all(Path(one["source"]).exists() for one in shape["sources"])


def test_an_empty_question_is_refused(home: Path, tiny: Path) -> None:
    done = kdn(home, "ask", " ", "--model", tiny)
    assert (done.code, done.out) == (2, "")
    assert "the question is empty" in done.err
