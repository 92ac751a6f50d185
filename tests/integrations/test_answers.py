"""kdn's library and answers inside LangChain and LlamaIndex, with the packages themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kdn
from kdn.api import QueryOptions
from kdn.config import load_config
from kdn.errors import BadInput
from kdn.rag.metis import Method
from tests.rag.bert import write_tiny_bert

QUESTION = "Where is the brass key?"
TEXTS = {
    "boat.md": "# Boat\n\nThe boat leaves the harbour at nine.\n",
    "key.md": "# Key\n\nThe brass key hangs behind the clock.\n",
}
SHORT = QueryOptions(max_tokens=5, method=Method.STUFF, max_chunks=2)
QUOTE = QueryOptions(method=Method.EXTRACT, max_chunks=2)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def k(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[kdn.Kdn]:
    pytest.importorskip("lancedb")
    home = tmp_path_factory.mktemp("home")
    bert = write_tiny_bert(home / "bert")
    papers = home / "papers"
    papers.mkdir()
    for name, text in TEXTS.items():
        (papers / name).write_text(text)
    config = load_config({"KDN_LIBRARY_EMBEDDER": str(bert)}, home=home)
    folder = tiny_model("llama", max_position_embeddings=2048)
    with kdn.open(folder, config=config, dtype="float32") as made:
        made.ingest(papers)
        yield made


def test_langchain_retrieves_parts_whose_text_is_always_the_same(k: kdn.Kdn) -> None:
    pytest.importorskip("langchain_core", reason="langchain-core is not installed")
    from kdn.integrations.langchain import KdnRetriever

    retriever = KdnRetriever(kdn=k, k=2)
    found = retriever.invoke(QUESTION)
    parts = {part.key: part for part in k.library.parts()}
    assert len(found) == 2
    for document in found:
        assert document.id is not None
        assert document.page_content == parts[document.id].text
        assert document.metadata["source"] == parts[document.id].source
    assert len(KdnRetriever(kdn=k, k=1).invoke(QUESTION)) == 1


def test_a_langchain_chain_answers_and_streams(k: kdn.Kdn) -> None:
    pytest.importorskip("langchain_core", reason="langchain-core is not installed")
    from langchain_core.runnables import RunnableLambda

    from kdn.integrations.langchain import KdnAnswers

    chain = RunnableLambda(str.strip) | KdnAnswers(k, SHORT)
    whole = chain.invoke(f"  {QUESTION} ")
    assert whole["answer"] == k.answering.answer(QUESTION, SHORT).text
    assert whole["configuration"]["method"] == "stuff"
    pieces = list(KdnAnswers(k, SHORT).stream(QUESTION))
    assert "".join(piece.get("answer", "") for piece in pieces) == whole["answer"]
    assert pieces[-1]["configuration"]["num_chunks"] == 2
    quoted = KdnAnswers(k, QUOTE).invoke(QUESTION)
    assert quoted["sources"][0].page_content.strip() == quoted["answer"]
    with pytest.raises(BadInput):
        KdnAnswers(k, SHORT).invoke(" ")


def test_llamaindex_retrieves_nodes(k: kdn.Kdn) -> None:
    pytest.importorskip("llama_index.core", reason="llama-index-core is not installed")
    from kdn.integrations.llamaindex import KdnIndexRetriever

    retriever = KdnIndexRetriever(k, k=2)
    found = retriever.retrieve(QUESTION)
    parts = {part.key: part for part in k.library.parts()}
    assert [parts[one.node.node_id].text for one in found] == [one.get_content() for one in found]
    assert found[0].score is not None
    awaited = asyncio.run(retriever.aretrieve(QUESTION))
    assert [one.node.node_id for one in awaited] == [one.node.node_id for one in found]


def test_a_llamaindex_engine_answers_and_streams(k: kdn.Kdn) -> None:
    pytest.importorskip("llama_index.core", reason="llama-index-core is not installed")
    from kdn.integrations.llamaindex import KdnQueryEngine

    answer = KdnQueryEngine(k, SHORT).query(QUESTION)
    expected = k.answering.answer(QUESTION, SHORT).text
    assert str(answer) == expected
    assert answer.metadata is not None
    assert answer.metadata["method"] == "stuff"
    streamed = KdnQueryEngine(k, SHORT, streaming=True).query(QUESTION)
    assert str(streamed) == expected
    assert streamed.metadata is not None
    assert streamed.metadata["method"] == "stuff"
    quoted = KdnQueryEngine(k, QUOTE).query(QUESTION)
    assert quoted.source_nodes[0].get_content().strip() == str(quoted)
    streamed = KdnQueryEngine(k, QUOTE, streaming=True).query(QUESTION)
    assert streamed.source_nodes == [], "they are known once its text has been read"
    assert str(streamed) == str(quoted)
    assert [node.text for node in streamed.source_nodes] == [
        node.text for node in quoted.source_nodes
    ]
