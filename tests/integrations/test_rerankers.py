"""kdn behind the interfaces of LangChain and LlamaIndex, with the packages themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kdn
from kdn.config import load_config
from kdn.errors import BadInput

TEXTS = ["the cat sat on the mat", "rain in the north", "stones"]


@pytest.fixture(scope="module")
def k(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[kdn.Kdn]:
    config = load_config({}, home=tmp_path_factory.mktemp("home"))
    folder = tiny_model("llama", max_position_embeddings=1024)
    with kdn.open(folder, config=config, dtype="float32") as made:
        yield made


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_langchains_compressor_keeps_the_best(k: kdn.Kdn) -> None:
    pytest.importorskip("langchain_core", reason="langchain-core is not installed")
    from langchain_core.documents import Document

    from kdn.integrations.langchain import KdnRerank

    given = [Document(page_content=text, metadata={"at": i}) for i, text in enumerate(TEXTS)]
    found = KdnRerank(kdn=k, top_n=2).compress_documents(given, "Where is the cat?")
    expected = k.rerank("Where is the cat?", TEXTS, top_n=2)
    assert [one.metadata["at"] for one in found] == [one.index for one in expected]
    assert found[0].metadata["relevance_score"] == pytest.approx(expected[0].score, abs=1e-5)
    assert "relevance_score" not in given[0].metadata


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_llamaindexs_postprocessor_keeps_the_best(k: kdn.Kdn) -> None:
    pytest.importorskip("llama_index.core", reason="llama-index-core is not installed")
    from llama_index.core.schema import NodeWithScore, TextNode

    from kdn.integrations.llamaindex import KdnPostprocessor

    given = [NodeWithScore(node=TextNode(text=text), score=0.0) for text in TEXTS]
    ranker = KdnPostprocessor(kdn=k, top_n=2)
    found = ranker.postprocess_nodes(given, query_str="Where is the cat?")
    expected = k.rerank("Where is the cat?", TEXTS, top_n=2)
    assert [node.get_content() for node in found] == [one.document for one in expected]
    assert found[0].score == pytest.approx(expected[0].score, abs=1e-5)
    with pytest.raises(BadInput, match="by a query"):
        ranker.postprocess_nodes(given)
