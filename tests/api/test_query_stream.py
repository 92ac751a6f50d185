"""A query as a stream: it ends, whatever became of the query, and for every reader."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kdn.api.answers import Answer
from kdn.api.queries import Query, QueryOptions
from kdn.api.query_stream import QueryStream
from kdn.core import Finish, FinishReason, Token, Usage
from kdn.errors import EngineFailed

ENDED = Finish(FinishReason.STOP, Usage(3, 1))


def answers(
    question: str, options: QueryOptions, show: Callable[[str], None], query: Query
) -> Answer:
    show("noon")
    return Answer("noon", ENDED.reason, ENDED.usage, (5,))


class Panic(BaseException):
    """What libraries in Rust raise for their own faults is no Exception."""


def panics(
    question: str, options: QueryOptions, show: Callable[[str], None], query: Query
) -> Answer:
    raise Panic("a library's own fault")


def test_a_second_reader_hears_the_end() -> None:
    stream = QueryStream(answers, "When?", QueryOptions())
    stream.start()
    assert list(stream) == [Token(0, "noon"), ENDED]
    assert list(stream) == []


def test_a_query_whose_library_panics_is_an_error() -> None:
    stream = QueryStream(panics, "When?", QueryOptions())
    stream.run()
    with pytest.raises(EngineFailed, match="a library's own fault"):
        list(stream)
