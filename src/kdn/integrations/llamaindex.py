"""kdn in LlamaIndex: its library as a retriever, its rankings as a postprocessor, answers as an engine."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Generator
from typing import Any

from kdn.api import Answer, Kdn, QueryOptions, QueryStream
from kdn.core import Token
from kdn.errors import BadInput, MissingExtra
from kdn.integrations.speaking import asked, on_a_thread
from kdn.rag import Part

try:
    from llama_index.core.base.base_query_engine import BaseQueryEngine
    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.base.response.schema import (
        RESPONSE_TYPE,
        Response,
        StreamingResponse,
    )
    from llama_index.core.callbacks.base import CallbackManager
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.prompts.mixin import PromptMixinType
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode
    from pydantic import ConfigDict
except ImportError as error:
    raise MissingExtra(
        "this needs LlamaIndex's core package: pip install 'kdn[llamaindex]'"
    ) from error

__all__ = ["KdnIndexRetriever", "KdnPostprocessor", "KdnQueryEngine"]


class KdnPostprocessor(BaseNodePostprocessor):
    """Keeps the nodes that fit a query best, best first, with kdn's score in place of the retriever's.

    `kdn` is an open model, which stays the caller's to close; the other fields are the arguments of
    `Kdn.rerank`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    kdn: Kdn
    top_n: int | None = 3
    layout: str = "document-first"
    template: str | None = None
    instruction: str | None = None
    adapter: str | None = None
    truncate: bool = False
    salt: str = ""

    @classmethod
    def class_name(cls) -> str:
        return "KdnPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        """The `top_n` best of `nodes`. Raises BadInput without a query, and other KdnError."""
        if query_bundle is None:
            raise BadInput("nodes are ranked by a query; give one")
        found = self.kdn.rerank(
            query_bundle.query_str,
            [node.node.get_content(metadata_mode=MetadataMode.NONE) for node in nodes],
            self.top_n,
            layout=self.layout,
            template=self.template,
            instruction=self.instruction,
            adapter=self.adapter,
            truncate=self.truncate,
            salt=self.salt,
        )
        return [NodeWithScore(node=nodes[one.index].node, score=one.score) for one in found]


class KdnIndexRetriever(BaseRetriever):
    """The parts of kdn's library that fit a query best, best first, as nodes."""

    def __init__(self, kdn: Kdn, k: int = 4) -> None:
        """`kdn` is an open model, which stays the caller's to close."""
        self._kdn, self._k = kdn, k
        super().__init__(callback_manager=CallbackManager([]))

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """At most `k` parts. Raises KdnError."""
        parts = self._kdn.library.context(
            query_bundle.query_str, max_tokens=sys.maxsize, max_parts=self._k
        )
        return [_node(part) for part in parts]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """As `_retrieve`, on a thread of the loop."""
        return await asyncio.to_thread(self._retrieve, query_bundle)


class KdnQueryEngine(BaseQueryEngine):
    """Answers from kdn's library, each question as suits it (`Kdn.answering`).

    The response's metadata are the answer's configuration, its nodes the passages it rests on.  Both
    are in a streamed response once its text has been read.
    """

    def __init__(
        self, kdn: Kdn, options: QueryOptions | None = None, *, streaming: bool = False
    ) -> None:
        """`kdn` is an open model, which stays the caller's to close."""
        self._kdn, self._options = kdn, options or QueryOptions()
        self._streaming = streaming
        super().__init__(callback_manager=CallbackManager([]))

    def _query(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        if self._streaming:
            nodes, metadata = list[NodeWithScore](), dict[str, Any]()
            pieces = self._pieces(query_bundle.query_str, nodes, metadata)
            return StreamingResponse(pieces, nodes, metadata)
        answer = self._kdn.answering.answer(query_bundle.query_str, self._options, query=asked())
        return Response(answer.text, _sources(answer), _configuration(answer))

    async def _aquery(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        """As `_query`, on a thread of the loop. A task that is cancelled stops its answer."""
        return await on_a_thread(self._query, query_bundle)

    def _get_prompt_modules(self) -> PromptMixinType:
        """None: the prompts are kdn's."""
        return {}

    def _pieces(
        self, question: str, nodes: list[NodeWithScore], metadata: dict[str, Any]
    ) -> Generator[str, None, None]:
        """The pieces of the answer; at their end what it rests on is put into the response's own."""
        stream = QueryStream(self._kdn.answering.answer, question, self._options)
        stream.start()
        try:
            for event in stream:
                if isinstance(event, Token):
                    yield event.text
            nodes += _sources(stream.ended)
            metadata |= _configuration(stream.ended)
        finally:
            stream.cancel()


def _sources(answer: Answer) -> list[NodeWithScore]:
    return [
        NodeWithScore(
            node=TextNode(text=one.text, metadata={"source": one.source, "title": one.title}),
            score=one.score,
        )
        for one in answer.sources
    ]


def _configuration(answer: Answer) -> dict[str, Any]:
    return {} if answer.report is None else answer.report.as_json()


def _node(part: Part) -> NodeWithScore:
    metadata = {"source": part.source, "title": part.title}
    return NodeWithScore(
        node=TextNode(id_=part.key, text=part.text, metadata=metadata), score=part.score
    )
