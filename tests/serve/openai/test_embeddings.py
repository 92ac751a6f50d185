"""Embeddings over HTTP: shapes with a stand-in whose vectors count tokens, meaning with MiniLM."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import openai
import pytest

from kdn.rag import Vectors
from kdn.serve.service import ServedEmbedder
from tests.serve.running import Running, running
from tests.serve.scripted import Lengths, ScriptedService


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    service = ScriptedService()
    with running(service) as server:
        yield server
    service.close()


def test_floats_and_packed(server: Running) -> None:
    """A text of three characters has five tokens: its two marks count."""
    packed = server.openai.embeddings.create(model="lengths", input=["abc", "de"])
    assert [item.embedding for item in packed.data] == [[5.0, 0.5], [4.0, 0.5]]
    assert (packed.usage.prompt_tokens, packed.model) == (9, "lengths")
    plain = server.openai.embeddings.create(model="lengths", input="abc", encoding_format="float")
    assert plain.data[0].embedding == [5.0, 0.5]


def test_token_ids_are_the_embedders_own(server: Running) -> None:
    create = server.openai.embeddings.create
    one = create(model="lengths", input=[97, 98, 99], encoding_format="float")
    assert [item.embedding for item in one.data] == [[5.0, 0.5]]
    marked = create(model="lengths", input=[[0, 97, 1], [98]], encoding_format="float")
    assert [item.embedding[0] for item in marked.data] == [3.0, 3.0]
    with pytest.raises(openai.BadRequestError, match="token id"):
        create(model="lengths", input=[0x110000])


def test_nothing_is_cut_in_silence(server: Running) -> None:
    """The embedder reads 20 tokens: 18 characters and two marks."""

    def post(**body: Any) -> Any:
        return server.http.post("/v1/embeddings", json={"encoding_format": "float", **body})

    assert post(input="x" * 18).status_code == 200
    for long in ("x" * 19, "x" * 2000, [5] * 19):
        refused = post(input=long).json()["error"]
        assert refused["code"] == "context_length_exceeded"
        assert "truncate_prompt_tokens" in refused["message"]
        cut = post(input=long, truncate_prompt_tokens=-1).json()
        assert (cut["data"][0]["embedding"], cut["usage"]["prompt_tokens"]) == ([20.0, 0.5], 20)
    assert post(input="x", truncate_prompt_tokens=7).status_code == 400


def test_prompts_are_made_while_texts_are_embedded() -> None:
    """Twenty clients embed; they would take every thread that makes prompts, of 16."""
    service, begun, go_on = ScriptedService(), threading.Event(), threading.Event()

    class Slow(Lengths):
        def embed_ids(self, ids: Sequence[Sequence[int]]) -> Vectors:
            begun.set()
            go_on.wait()
            return super().embed_ids(ids)

    served = replace(service.served(), embedder=ServedEmbedder("lengths", 20, Slow))
    with running(served) as server, ExitStack() as clients:
        clients.callback(go_on.set)
        for _ in range(20):
            clients.enter_context(server.asking("/v1/embeddings", b'{"input": "abc"}'))
        begun.wait()
        made = server.http.post("/tokenize", json={"prompt": "ab"}, timeout=20)
    assert made.json()["tokens"] == [97, 98]
    service.close()


def test_another_model_is_not_found(server: Running) -> None:
    with pytest.raises(openai.NotFoundError, match="lengths does"):
        server.openai.embeddings.create(model="text-embedding-3-small", input="x")
    assert "lengths" in [model.id for model in server.openai.models.list()]
    assert server.openai.models.retrieve("lengths").id == "lengths"


def test_emptiness_and_other_sizes_are_refused(server: Running) -> None:
    wrong: list[dict[str, Any]] = [
        {"input": ""},
        {"input": []},
        {"input": ["a", ""]},
        {"input": [[]]},
        {"input": "x", "dimensions": 7},
        {"input": ["x"] * 2049},
        {"input": [1, "a"]},
    ]
    for body in wrong:
        assert server.http.post("/v1/embeddings", json=body).status_code == 400, body


def test_a_missing_embedder_is_said() -> None:
    service = ScriptedService(with_embedder=False)
    try:
        with running(service) as server:
            answer = server.http.post("/v1/embeddings", json={"input": "x"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (501, "not_installed")
            assert len(list(server.openai.models.list())) == 2
    finally:
        service.close()


def test_ids_and_text_have_the_same_vector() -> None:
    """With the embedder itself: its marks are put around ids that come without."""
    from kdn.errors import MissingExtra
    from kdn.rag.minilm import MiniLm, find_minilm

    try:
        embedder = MiniLm(find_minilm())
    except MissingExtra:
        pytest.skip("the embedder's weights are not installed")
    text = "A dog barks at the moon."
    ids = embedder.token_ids(text)
    assert len(embedder.token_ids("")) == 2
    assert len(embedder.token_ids("dog " * 999)) == 1001  # all of it, where `embed` reads 256
    assert (embedder.embed_ids([ids]) == embedder.embed([text])).all()
