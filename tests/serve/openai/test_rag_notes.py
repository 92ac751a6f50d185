"""What goes wrong before an answer, over HTTP: it is a note in the answer, never an error to the user."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import kdn
from kdn.config import load_config
from kdn.serve import served
from tests.rag.bert import write_tiny_bert
from tests.rag.endpoints import WAYS, failing_endpoint, need_embedder
from tests.serve.running import Running, running

QUESTION = "Where is the brass key?"
TEXT = "# Key\n\nThe brass key hangs behind the clock.\n"


def tiny_embedder(home: Path) -> dict[str, str]:
    return {"KDN_LIBRARY_EMBEDDER": str(write_tiny_bert(home / "bert"))}


@contextmanager
def serving(
    model: Path, home: Path, text: str | None, settings: dict[str, str]
) -> Iterator[Running]:
    """A server whose library holds `text`, or nothing."""
    pytest.importorskip("lancedb")
    config = load_config(settings, home=home)
    with kdn.open(model, config=config, dtype="float32") as found, running(served(found)) as server:
        if text is not None:
            (home / "paper.md").write_text(text)
            found.ingest(home / "paper.md")
        yield server


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", max_position_embeddings=4096)


def asked(server: Running, question: str = QUESTION) -> Any:
    """The whole answer; the streamed one has the same notes."""
    given = {"question": question, "max_tokens": 3}
    answer = server.http.post("/v1/rag/query", json=given)
    assert answer.status_code == 200, answer.text
    streamed = server.http.post("/v1/rag/query", json={**given, "stream": True}).text
    events = [line.removeprefix("data: ") for line in streamed.splitlines() if line]
    assert events[-1] == "[DONE]"
    last, whole = json.loads(events[-2]), answer.json()
    assert len(last["configuration"]["notes"]) == len(whole["configuration"]["notes"])
    return whole


def test_an_empty_library(model: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path, None, tiny_embedder(tmp_path)) as server:
        found = asked(server)
    assert not found["in_documents"]
    (note,) = found["configuration"]["notes"]
    assert note == "the library is empty; take documents in first: kdn ingest PATH"
    assert found["sources"] == []


def test_a_question_without_a_match(model: Path, tmp_path: Path) -> None:
    """By the packaged embedder, whose similarities were measured."""
    need_embedder()
    with serving(model, tmp_path, TEXT, {}) as server:
        found = asked(server, "Quantum chromodynamics lattice gauge coupling?")
        assert not found["in_documents"]
        (note,) = found["configuration"]["notes"]
        assert note == "what was found does not speak for an answer"
        assert asked(server)["configuration"]["notes"] == []


@pytest.mark.parametrize("way", WAYS)
def test_a_profiler_that_fails(model: Path, tmp_path: Path, way: str) -> None:
    with failing_endpoint(way) as url:
        settings = tiny_embedder(tmp_path) | {
            "KDN_ASK_PROFILER": "endpoint",
            "KDN_ASK_ENDPOINT_URL": url,
            "KDN_ASK_ENDPOINT_MODEL": "any",
            "KDN_ASK_PROFILE_TIMEOUT_S": "0.3",
        }
        with serving(model, tmp_path, TEXT, settings) as server:
            found = asked(server)
    assert found["in_documents"]
    assert found["usage"]["completion_tokens"] > 0
    (note,) = found["configuration"]["notes"]
    assert "the question's words were read" in note
    assert found["configuration"]["profile"]["source"] == "rules"
