"""Questions about documents over HTTP: whole, streamed, refused, and left by their clients."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import kdn
from kdn.api import Answer, Query, QueryOptions
from kdn.api.answers import not_in_documents
from kdn.config import load_config
from kdn.rag.metis import QueryReport
from kdn.serve import Limits, ServeSettings, served
from tests.rag.bert import write_tiny_bert
from tests.serve.running import Running, running, wait_for
from tests.serve.scripted import ScriptedService

QUESTION = "Where is the brass key?"
TEXTS = {
    "boat.md": "# Boat\n\nThe boat leaves the harbour at nine.\n",
    "key.md": "# Key\n\nThe brass key hangs behind the clock.\n",
}


@pytest.fixture(scope="module")
def opened(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[kdn.Kdn]:
    pytest.importorskip("lancedb")
    home = tmp_path_factory.mktemp("home")
    bert = write_tiny_bert(home / "bert")
    config = load_config({"KDN_LIBRARY_EMBEDDER": str(bert)}, home=home)
    folder = tiny_model("llama", max_position_embeddings=4096)
    papers = home / "papers"
    papers.mkdir()
    for name, text in TEXTS.items():
        (papers / name).write_text(text)
    with kdn.open(folder, config=config, dtype="float32") as found:
        found.ingest(papers)
        yield found
        found.check()


@pytest.fixture(scope="module")
def server(opened: kdn.Kdn) -> Iterator[Running]:
    with running(served(opened)) as server:
        yield server


def query(server: Running, **body: Any) -> Any:
    given = {"question": QUESTION, "max_tokens": 4, **body}
    answer = server.http.post("/v1/rag/query", json=given)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_an_answer_carries_its_configuration_and_sources(server: Running) -> None:
    found = query(server)
    assert found["object"] == "rag.answer"
    assert found["id"].startswith("rag-")
    assert found["in_documents"]
    assert found["configuration"]["method"] in ("stuff", "map_rerank", "map_reduce")
    assert found["configuration"]["profile"]["source"] == "classifier"
    assert found["configuration"]["predicted_ms"] > 0
    assert found["configuration"]["took_ms"] > 0
    assert found["usage"]["completion_tokens"] > 0
    assert found["kdn"]["recomputed"] + found["kdn"]["exact"] == found["usage"]["prompt_tokens"]


@pytest.mark.parametrize("method", ["extract", "stuff", "map_rerank", "map_reduce"])
def test_a_stream_is_the_answer_in_pieces(server: Running, method: str) -> None:
    given = {"question": QUESTION, "max_tokens": 4, "method": method, "stream": True}
    with server.http.stream("POST", "/v1/rag/query", json=given) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    whole = events[-1]
    assert whole["object"] == "rag.answer"
    assert whole["configuration"]["method"] == method
    assert "".join(one["delta"] for one in events[:-1]) == whole["answer"]


def test_an_extract_names_its_passage(server: Running) -> None:
    found = query(server, method="extract", max_chunks=2)
    assert found["sources"][0]["text"].strip() == found["answer"]
    assert found["usage"]["total_tokens"] == 0


def test_a_deadline_and_a_preference_are_honoured(server: Running) -> None:
    quoted = query(server, deadline_ms=0.01)
    assert quoted["configuration"]["method"] == "extract"
    assert "quoted" in quoted["configuration"]["reasons"][-1]
    assert query(server, quality="fast", always=True)["configuration"]["num_chunks"] >= 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"question": ""},
        {"question": "  "},
        {"method": "guess"},
        {"quality": "cheap"},
        {"max_chunks": 0},
        {"max_chunks": 36},
        {"deadline_ms": 0},
        {"summary_tokens": 50},
        {"ratio": 2},
        {"reuse": "all"},
        {"temprature": 1},
        {"max_tokens": 1 << 20, "method": "stuff"},
    ],
)
def test_what_cannot_be_done_is_refused(server: Running, wrong: dict[str, Any]) -> None:
    answer = server.http.post("/v1/rag/query", json={"question": QUESTION, **wrong})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


def test_an_unknown_model_is_not_found(server: Running) -> None:
    answer = server.http.post("/v1/rag/query", json={"question": QUESTION, "model": "x"})
    assert answer.status_code == 404


def test_a_client_that_leaves_ends_its_query(server: Running, opened: kdn.Kdn) -> None:
    given = {"question": QUESTION, "max_tokens": 3000, "method": "stuff", "stream": True}
    with server.http.stream("POST", "/v1/rag/query", json=given) as answer:
        next(answer.iter_lines())
    query(server)  # the engine is free for others
    assert opened.engine.waiting_kv() == 0


def test_a_query_counts_until_it_has_ended_though_its_client_has_left() -> None:
    """One may be in work for a caller: the second is refused while the thread of the first goes on."""
    queries, go_on = list[Query](), threading.Event()

    def ask(question: str, options: QueryOptions, show: object, query: Query) -> Answer:
        queries.append(query)
        go_on.wait(60)
        return replace(not_in_documents(), report=QueryReport(None))

    settings = ServeSettings(port=0, limits=Limits(caller_requests=1))
    given = {"question": QUESTION}
    with closing(ScriptedService()) as service:
        model = replace(service.served(), ask=ask)
        with running(model, settings) as server:
            with server.asking("/v1/rag/query", json.dumps(given).encode()):
                wait_for(lambda: len(queries) == 1)
            wait_for(lambda: queries[0].is_cancelled)
            second = server.http.post("/v1/rag/query", json=given)
            go_on.set()
            assert (second.status_code, len(queries)) == (429, 1)
            wait_for(lambda: server.http.post("/v1/rag/query", json=given).status_code == 200)
            assert server.http.post("/v1/rag/query", json=given).status_code == 200


def test_a_server_without_documents_says_so() -> None:
    service = ScriptedService()
    try:
        with running(service) as server:
            answer = server.http.post("/v1/rag/query", json={"question": QUESTION})
            assert answer.status_code == 501
            assert "library" in answer.json()["error"]["message"]
    finally:
        service.close()
