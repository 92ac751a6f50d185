"""kdn as a document compressor of LangChain: what a retriever found, ranked, the best kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdn.api import Kdn
from kdn.errors import MissingExtra

try:
    from langchain_core.documents import BaseDocumentCompressor, Document
    from pydantic import ConfigDict
except ImportError as error:
    raise MissingExtra(
        "this needs LangChain's core package: pip install 'kdn[langchain]'"
    ) from error

if TYPE_CHECKING:
    from langchain_core.callbacks import Callbacks

__all__ = ["KdnRerank"]


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
