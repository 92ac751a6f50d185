"""Where query and document stand when a model is asked whether they belong together.

Document first: everything before the query is the same for all queries, so its KV is computed once
and exact for each later one.  Query first: what most published rerankers were trained on; only the
query can be shared.
"""

from __future__ import annotations

from enum import StrEnum

from kdn.errors import BadInput
from kdn.model import Document, Message
from kdn.rank.questions import Conversation

__all__ = ["RELEVANCE", "Layout", "relevance_question"]

RELEVANCE = "Does the document help to answer the query?"
"""What is asked of query and document unless the caller says otherwise."""

_CUE = "Answer with Yes or No only."


class Layout(StrEnum):
    """Which of query and document stands first."""

    DOCUMENT_FIRST = "document-first"
    QUERY_FIRST = "query-first"


def relevance_question(
    query: str, document: Document, layout: Layout, instruction: str = RELEVANCE
) -> Conversation:
    """Yes or No: does `document` belong to `query`?

    Document first, the document follows the neutral prelude, as it does in an answer, so both
    jobs name its blocks alike.  Raises BadInput for an empty query or document.
    """
    if not query.strip() or not document.text.strip():
        raise BadInput("a query and each document must have text; one of them is empty")
    asked = f"{instruction.strip()} {_CUE}"
    said = f"Query: {query.strip()}"
    if layout is Layout.DOCUMENT_FIRST:
        return Conversation((Message("user", f"{said}\n{asked}"),), (document,))
    told = Message("system", f"{asked}\n\n{said}")
    return Conversation((told, Message("user", f"Document: {document.text.strip()}\n\n{asked}")))
