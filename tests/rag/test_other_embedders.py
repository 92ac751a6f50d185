"""Embedders that people bring: a BERT folder pooled in either way, and a model behind an address."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from kdn.api.embedders import open_embedder
from kdn.config import LibraryConfig, load_config
from kdn.errors import BadConfig, EndpointFailed, ForeignStore, UnknownModel, WeightsError
from kdn.rag.embed_endpoint import EndpointEmbedder
from kdn.rag.endpoint import OpenAiEndpoint
from kdn.rag.minilm import MiniLm
from tests.rag.bert import write_tiny_bert
from tests.rag.helpers import small_library
from tests.serve.running import running
from tests.serve.scripted import ScriptedService

TEXTS = ["a brass key", "the boat leaves at nine, and nobody knows when it comes back", "k"]


@pytest.mark.parametrize("pools_first", [False, True])
def test_a_bert_folder_gives_the_vectors_of_transformers(tmp_path: Path, pools_first: bool) -> None:
    transformers = pytest.importorskip("transformers")
    folder = write_tiny_bert(tmp_path / "bert", pools_first=pools_first)
    ours = MiniLm(folder, torch.float32)
    reference = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    found = ours.embed(TEXTS)
    for vector, text in zip(found, TEXTS, strict=True):
        ids = torch.tensor([ours.token_ids(text)[: ours.max_tokens]])
        ids[0, -1] = 3
        with torch.no_grad():
            hidden = reference(ids).last_hidden_state[0]
        pooled = hidden[0] if pools_first else hidden.mean(0)
        assert np.allclose(vector, torch.nn.functional.normalize(pooled, dim=0), atol=1e-5)


def test_pooling_and_length_are_part_of_the_name(tmp_path: Path) -> None:
    """Vectors of another kind must not be searched among those that are stored."""
    mean = MiniLm(write_tiny_bert(tmp_path / "mean"))
    first = MiniLm(write_tiny_bert(tmp_path / "first", pools_first=True))
    short = MiniLm(write_tiny_bert(tmp_path / "short", max_tokens=8))
    assert len({mean.name, first.name, short.name}) == 3
    assert (mean.max_tokens, short.max_tokens) == (48, 8)
    library = small_library(tmp_path / "library", mean)
    assert library.num_sources == 0
    with pytest.raises(ForeignStore):
        small_library(tmp_path / "library", first)


def test_a_folder_that_pools_otherwise_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_bert(tmp_path / "bert")
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text('{"pooling_mode_mean_tokens": false, "pooling_mode_max_tokens": true}')
    with pytest.raises(WeightsError, match="pooled"):
        MiniLm(folder)
    pooling.write_text("{torn")
    with pytest.raises(WeightsError, match="cannot be read"):
        MiniLm(folder)


def answering(rows: Callable[[list[str]], object]) -> OpenAiEndpoint:
    def send(url: str, sent: bytes, headers: Mapping[str, str], timeout_s: float) -> bytes:
        assert url.endswith("/v1/embeddings")
        return json.dumps(rows(json.loads(sent)["input"])).encode()

    return OpenAiEndpoint("http://models/v1", "m", send=send)


def test_an_endpoints_vectors_come_in_order_and_of_length_one() -> None:
    def rows(texts: list[str]) -> object:
        found = [
            {"index": i, "embedding": [float(len(text)), 0.0, 1.0]} for i, text in enumerate(texts)
        ]
        return {"data": found[::-1]}

    embedder = EndpointEmbedder(answering(rows))
    texts = ["x" * i for i in range(1, 150)]
    found = embedder.embed(texts)
    assert (embedder.dimension, embedder.name) == (3, "endpoint-m-3")
    assert np.allclose(np.linalg.norm(found, axis=1), 1)
    assert np.allclose(found[:, 0] / found[:, 2], range(1, 150))
    assert embedder.embed([]).shape == (0, 3)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"data": []},
        {"data": [{"index": 0}]},
        {"data": [{"index": 0, "embedding": ["x"]}]},
        {"data": [{"index": 0, "embedding": [[1.0]]}]},
        {"data": [{"index": 0, "embedding": [1e999]}]},
        [1],
    ],
)
def test_an_endpoint_that_does_not_embed_is_told(answer: object) -> None:
    with pytest.raises(EndpointFailed):
        EndpointEmbedder(answering(lambda _: answer))


def test_vectors_of_another_length_are_refused_later() -> None:
    lengths = iter([2, 3])

    def rows(texts: list[str]) -> object:
        return {"data": [{"index": 0, "embedding": [1.0] * next(lengths)}]}

    embedder = EndpointEmbedder(answering(rows))
    with pytest.raises(EndpointFailed, match="a library of its own"):
        embedder.embed(["a"])


def test_settings_name_a_folder_or_an_address(tmp_path: Path) -> None:
    """The address is a kdn server's, with a real client between."""
    folder = write_tiny_bert(tmp_path / "bert")
    config = load_config({"KDN_LIBRARY_EMBEDDER": str(folder)}, home=tmp_path)
    assert isinstance(open_embedder(config.library, tmp_path), MiniLm)
    with pytest.raises(UnknownModel):
        open_embedder(LibraryConfig(embedder="no-such-embedder"), tmp_path)
    with pytest.raises(BadConfig, match="embedder_model"):
        LibraryConfig(embedder="http://localhost:1/v1")
    service = ScriptedService()
    try:
        with running(service) as server:
            settings = LibraryConfig(
                embedder=f"{server.url}/v1", embedder_model="lengths", embedder_key="k"
            )
            found = open_embedder(settings, tmp_path).embed(["abcd"])
            assert found.shape == (1, 2)
            assert np.linalg.norm(found) == pytest.approx(1)
            wrong = LibraryConfig(embedder=f"{server.url}/v1", embedder_model="other")
            with pytest.raises(EndpointFailed, match="404"):
                open_embedder(wrong, tmp_path)
    finally:
        service.close()
    with pytest.raises(EndpointFailed, match="did not answer"):
        open_embedder(settings, tmp_path)
