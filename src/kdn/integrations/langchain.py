"""kdn in LangChain: its library as a retriever, its rankings as a compressor, its answers as a chain."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from kdn.api import Answer, Kdn, QueryOptions, QueryStream
from kdn.core import Token
from kdn.errors import MissingExtra

try:
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.runnables import Runnable, RunnableConfig
    from langchain_core.runnables.utils import AddableDict
    from pydantic import ConfigDict
except ImportError as error:
    raise MissingExtra(
        "this needs LangChain's core package: pip install 'kdn[langchain]'"
    ) from error

if TYPE_CHECKING:
    from langchain_core.callbacks import CallbackManagerForRetrieverRun, Callbacks

__all__ = ["KdnAnswers", "KdnRerank", "KdnRetriever"]


class KdnRerank(BaseDocumentCompressor):
    """Keeps the documents that fit a query best, best first, with `relevance_score` in their metadata.

    `kdn` is an open model, which stays the caller's to close; the other fields are the arguments of
    `Kdn.rerank`.  The documents given are left as they are.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    kdn: Kdn
    top_n: int | None = 3
    layout: str = "document-first"
    template: str | None = None
    instruction: str | None = None
    adapter: str | None = None
    truncate: bool = False
    salt: str = ""

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """The `top_n` best of `documents`. Raises KdnError."""
        found = self.kdn.rerank(
            query,
            [document.page_content for document in documents],
            self.top_n,
            layout=self.layout,
            template=self.template,
            instruction=self.instruction,
            adapter=self.adapter,
            truncate=self.truncate,
            salt=self.salt,
        )
        return [_scored(documents[one.index], one.score) for one in found]


def _scored(document: Document, score: float) -> Document:
    metadata = {**document.metadata, "relevance_score": score}
    return document.model_copy(update={"metadata": metadata})


class KdnRetriever(BaseRetriever):
    """The parts of kdn's library that fit a query best, best first, as documents.

    `kdn` is an open model, which stays the caller's to close.  A document's text is the same at every
    use, so that its KV is found again; its id is the part's key.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    kdn: Kdn
    k: int = 4

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        """At most `k` parts. Raises KdnError."""
        parts = self.kdn.library.context(query, max_tokens=sys.maxsize, max_parts=self.k)
        return [
            Document(
                id=part.key,
                page_content=part.text,
                metadata={"source": part.source, "title": part.title, "score": part.score},
            )
            for part in parts
        ]


class KdnAnswers(Runnable[str, dict[str, Any]]):
    """A chain from a question to its answer, each answered as suits it (`Kdn.answering`).

    Gives `answer`, `in_documents`, `sources` as documents, and `configuration`.  Streamed, the pieces of
    `answer` come first, then the rest.
    """

    def __init__(self, kdn: Kdn, options: QueryOptions | None = None) -> None:
        """`kdn` stays the caller's to close."""
        self._kdn = kdn
        self._options = options or QueryOptions()

    def invoke(
        self,
        input: str,  # noqa: A002 - the framework's name
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The whole answer. Raises KdnError."""
        return self._call_with_config(self._answered, input, config, run_type="chain")

    def stream(
        self,
        input: str,  # noqa: A002 - the framework's name
        config: RunnableConfig | None = None,
        **kwargs: Any | None,
    ) -> Iterator[dict[str, Any]]:
        """Pieces that add up to what `invoke` gives; a reader that leaves ends the query."""
        stream = QueryStream(self._kdn.answering.answer, input, self._options)
        stream.start()
        try:
            for event in stream:
                if isinstance(event, Token):
                    yield AddableDict(answer=event.text)
            yield AddableDict(_beside(stream.ended))
        finally:
            stream.cancel()

    def _answered(self, question: str) -> dict[str, Any]:
        answer = self._kdn.answering.answer(question, self._options)
        return {"answer": answer.text, **_beside(answer)}


def _beside(answer: Answer) -> dict[str, Any]:
    """What an answer is beside its text."""
    sources = [
        Document(
            page_content=one.text,
            metadata={"source": one.source, "title": one.title, "relevance_score": one.score},
        )
        for one in answer.sources
    ]
    report = answer.report
    configuration = None if report is None else report.as_json()
    return {
        "in_documents": answer.in_documents,
        "sources": sources,
        "configuration": configuration,
    }
