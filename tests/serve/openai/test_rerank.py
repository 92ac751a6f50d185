"""Reranking over HTTP, against the same ranking in Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kdn
from kdn.config import load_config
from kdn.rank import YES_NO, Asking, Layout, glued, make_choices
from kdn.serve import served
from tests.serve.running import Running, running
from tests.serve.scripted import Characters, ScriptedService

QUERY = "Where is the cat?"
TEXTS = ["The mat has a cat.", "It rains.", "Stones are hard.", "It rains."]


@pytest.fixture(scope="module")
def opened(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[kdn.Kdn]:
    config = load_config({}, home=tmp_path_factory.mktemp("home"))
    folder = tiny_model("llama", max_position_embeddings=2048)
    with kdn.open(folder, config=config, dtype="float32") as found:
        yield found
        found.check()


@pytest.fixture(scope="module")
def server(opened: kdn.Kdn) -> Iterator[Running]:
    with running(served(opened)) as server:
        yield server


def post(server: Running, path: str, **body: Any) -> Any:
    answer = server.http.post(path, json={"query": QUERY, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_every_door_ranks_as_python_does(server: Running, opened: kdn.Kdn, path: str) -> None:
    found = post(server, path, documents=TEXTS, top_n=3)
    expected = opened.rerank(QUERY, TEXTS, top_n=3)
    assert [one["index"] for one in found["results"]] == [one.index for one in expected]
    scores = [one["relevance_score"] for one in found["results"]]
    assert scores == pytest.approx([one.score for one in expected], abs=1e-5)
    assert found["usage"]["prompt_tokens"] == expected.prompt_tokens
    assert found["id"].startswith("rerank-")
    shown = [one.get("document") for one in found["results"]]
    if path == "/v2/rerank":
        assert shown == [None] * 3
        assert found["meta"]["api_version"]["version"] == "2"
    else:
        assert shown == [{"text": one.document} for one in expected]


def test_documents_may_be_wrapped_and_shown_or_not(server: Running) -> None:
    wrapped = [{"text": text} for text in TEXTS]
    hidden = post(server, "/v1/rerank", documents=wrapped, return_documents=False)
    assert all("document" not in one for one in hidden["results"])
    shown = post(server, "/v2/rerank", documents=wrapped, return_documents=True)
    assert {one["document"]["text"] for one in shown["results"]} == set(TEXTS)


def test_texts_get_the_answer_of_text_embeddings_inference(server: Running) -> None:
    plain = post(server, "/rerank", texts=TEXTS)
    assert isinstance(plain, list)
    assert all(set(one) == {"index", "score"} for one in plain)
    assert [one["score"] for one in plain] == sorted((o["score"] for o in plain), reverse=True)
    raw = post(server, "/rerank", texts=TEXTS, raw_scores=True, return_text=True)
    assert [one["index"] for one in raw] == [one["index"] for one in plain]
    assert raw[0]["text"] == TEXTS[raw[0]["index"]]
    assert raw[0]["score"] != plain[0]["score"]


def test_the_second_query_finds_the_documents(server: Running) -> None:
    texts = [f"A document about number {number}, stored once." for number in range(6)]
    post(server, "/rerank", documents=texts)
    again = server.http.post("/rerank", json={"query": "And now?", "documents": texts}).json()
    cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached > sum(map(len, texts))


def test_nothing_and_empty_documents(server: Running) -> None:
    assert post(server, "/rerank", documents=[])["results"] == []
    found = post(server, "/rerank", documents=["", "x"])
    assert [one["index"] for one in found["results"]] == [1, 0]
    assert found["results"][1]["relevance_score"] == 0.0
    raw = post(server, "/rerank", texts=["", "x"], raw_scores=True)
    assert raw[1] == {"index": 0, "score": None}


def test_ten_thousand_documents(server: Running) -> None:
    """Ten distinct ones, which are all that is computed."""
    texts = [f"n{number % 10}" for number in range(10_000)]
    found = post(server, "/rerank", documents=texts, top_n=1)
    assert len(found["results"]) == 1
    assert found["usage"]["completion_tokens"] == 10


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({}, "give the candidates"),
        ({"documents": ["a"], "texts": ["b"]}, "give the candidates"),
        ({"documents": ["a"] * 10_001}, "10,001 documents"),
        ({"documents": ["a"], "query": " "}, "the query is empty"),
        ({"documents": ["a"], "layout": "sideways"}, "document-first or query-first"),
        ({"documents": ["a"], "template": "../secret.toml"}, "no template"),
        ({"documents": ["a"], "template": "qwen3-reranker"}, "needs the token"),
        ({"documents": ["word " * 999]}, "context"),
        ({"documents": ["a"], "rank_fields": ["x"]}, "rank_fields"),
        ({"documents": ["a"], "model": "other"}, "not served here"),
        ({"documents": ["a"], "top_n": 0}, "top_n"),
    ],
)
def test_bad_requests_are_refused_with_the_reason(
    server: Running, body: dict[str, Any], why: str
) -> None:
    answer = server.http.post("/rerank", json={"query": QUERY, **body})
    assert 400 <= answer.status_code < 500
    assert why in answer.text


def test_coheres_bound_on_a_document_is_kept(server: Running) -> None:
    """Of two documents that begin alike the same is read, so they score alike."""
    long = ["The mat has a cat. " + tail * 40 for tail in ("It rains. ", "Stones. ")]
    body = {"query": QUERY, "documents": long, "max_tokens_per_doc": 18}
    cut = server.http.post("/v2/rerank", json=body).json()["results"]
    assert cut[0]["relevance_score"] == pytest.approx(cut[1]["relevance_score"], abs=1e-6)
    whole = server.http.post("/v2/rerank", json={"query": QUERY, "documents": long}).json()
    first, second = (one["relevance_score"] for one in whole["results"])
    assert first != second
    assert server.http.post("/v2/rerank", json={**body, "max_tokens_per_doc": 0}).status_code == 400


def test_documents_have_titles_or_come_from_langchain(server: Running) -> None:
    texts = [{"title": "Cats", "text": "On mats."}, {"page_content": "It rains.", "metadata": {}}]
    found = post(server, "/v1/rerank", documents=texts)["results"]
    shown = {one["document"]["text"] for one in found}
    assert shown == {"Cats\n\nOn mats.", "It rains."}


def test_a_long_document_is_cut_when_asked(server: Running) -> None:
    found = post(server, "/rerank", texts=["word " * 999, "a"], truncate=True)
    assert len(found) == 2


def test_a_document_too_long_with_its_query_is_refused_before_any_is_asked_about() -> None:
    """512 documents are asked about together: the last one, of 3,000 tokens, waits for those."""
    encode = Characters().encode

    def asking(query: str, **_: object) -> Asking:
        choices = make_choices(YES_NO, lambda word: encode(word[:1]))
        return Asking(
            lambda text: glued(encode(text), encode(query)), choices, Layout.DOCUMENT_FIRST
        )

    service = ScriptedService(max_context=4096, asking=asking)
    try:
        with running(service) as server:
            texts = [*map(str, range(512)), "x" * 3000]
            answer = server.http.post("/rerank", json={"query": "q" * 2000, "texts": texts})
            error = answer.json()["error"]
            assert error["code"] == "context_length_exceeded"
            assert "number 512, counted from 0, have 4968 tokens or more" in error["message"]
            assert service.requests == []
    finally:
        service.close()
