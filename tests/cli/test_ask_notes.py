"""What goes wrong before an answer, on the command line: a note beside the answer, or one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.program import kdn
from tests.rag.bert import write_tiny_bert
from tests.rag.endpoints import WAYS, failing_endpoint, need_embedder

ASK = ("ask", "Where is the brass key?", "--auto", "--max-tokens", "3")


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path]) -> Path:
    pytest.importorskip("lancedb")
    return tiny_model("llama", max_position_embeddings=4096)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> Path:
    """A home whose library holds one text."""
    monkeypatch.setenv("KDN_LIBRARY_EMBEDDER", str(write_tiny_bert(tmp_path / "bert")))
    (tmp_path / "paper.md").write_text("# Key\n\nThe brass key hangs behind the clock.\n")
    assert kdn(tmp_path / "home", "ingest", tmp_path / "paper.md", "--model", tiny).code == 0
    return tmp_path / "home"


def test_an_empty_library_says_what_to_do(home: Path, tiny: Path) -> None:
    """One sentence, and an exit code that scripts can see: there is no answer."""
    done = kdn(home.parent / "other", *ASK, "--model", tiny)
    assert done.err.count("the library is empty; take documents in first: kdn ingest PATH") == 1
    assert (done.code, done.out) == (2, "")


def test_a_question_without_a_match(
    home: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the packaged embedder, whose similarities were measured."""
    need_embedder()
    monkeypatch.delenv("KDN_LIBRARY_EMBEDDER")
    home = home.parent / "other"
    assert kdn(home, "ingest", home.parent / "paper.md", "--model", tiny).code == 0
    question = "Quantum chromodynamics lattice gauge coupling?"
    done = kdn(home, "ask", question, "--auto", "--model", tiny)
    assert "what was found does not speak for an answer" in done.out + done.err


@pytest.mark.parametrize("way", WAYS)
def test_a_profiler_that_fails_is_told_beside_the_answer(
    home: Path, tiny: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with failing_endpoint(way) as url:
        monkeypatch.setenv("KDN_ASK_PROFILER", "endpoint")
        monkeypatch.setenv("KDN_ASK_ENDPOINT_URL", url)
        monkeypatch.setenv("KDN_ASK_ENDPOINT_MODEL", "any")
        monkeypatch.setenv("KDN_ASK_PROFILE_TIMEOUT_S", "0.3")
        done = kdn(home, *ASK, "--model", tiny)
    assert done.code == 0, done.err
    assert "the question's words were read" in done.out + done.err
