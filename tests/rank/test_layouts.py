"""Document first: whatever is asked, the tokens up to the query are the same."""

from __future__ import annotations

import pytest

from kdn.errors import BadInput
from kdn.model import Document
from kdn.rank import Layout, relevance_question

TEXT = Document("a", "Tabs are eight columns wide.")


def test_a_document_first_question_keeps_the_query_out_of_what_stands_before() -> None:
    asked = [relevance_question(q, TEXT, Layout.DOCUMENT_FIRST) for q in ("How wide?", "Who?")]
    assert asked[0].documents == asked[1].documents == (TEXT,)
    assert asked[0].messages[0].content.startswith("Query: How wide?\n")


def test_a_query_first_question_says_the_query_before_the_text() -> None:
    system, user = relevance_question("How wide?", TEXT, Layout.QUERY_FIRST).messages
    assert "Query: How wide?" in system.content
    assert user.content.startswith("Document: Tabs are")


@pytest.mark.parametrize(("query", "text"), [("", "a"), ("a", " "), (" \n", "a")])
def test_an_empty_query_or_document_is_refused(query: str, text: str) -> None:
    with pytest.raises(BadInput, match="must have text"):
        relevance_question(query, Document(None, text), Layout.DOCUMENT_FIRST)
