"""The router's benchmark on a trace of a few requests, with sums by hand."""

from __future__ import annotations

import pytest

from kdn.bench.scale.router import side_by_side
from kdn.core import JctModel
from kdn.cost import Speed
from kdn.store.traces.recording import TraceRequest

SPEED = Speed(JctModel(0.0, 0.001, 0.0, 0.0), decode_token_s=0.5)
"""A millisecond a token."""
TRACE = [
    TraceRequest(timestamp=1000 * at_s, input_length=1000, output_length=4, hash_ids=(1, name))
    for at_s, name in ((10, 2), (12, 3), (14, 4))
]
"""Three seconds of work in four seconds."""


def test_copies_keep_the_servers_busy() -> None:
    """Three quarters busy need one copy a server, at its own speed; half busy half its speed."""
    plain = side_by_side(TRACE, 1, SPEED, busy=0.75)
    assert [one.at_s for one in plain] == [0, 2, 4]
    assert [one.at_s for one in side_by_side(TRACE, 1, SPEED, busy=0.375)] == [0, 4, 8]
    assert plain[0].answer_s == 2.0
    assert plain[0].prompt.num_tokens == 1000


def test_copies_have_no_text_in_common() -> None:
    requests = side_by_side(TRACE, 2, SPEED, busy=0.75)
    assert len(requests) == 6
    assert [one.at_s for one in requests] == pytest.approx([0, 2, 4, 30, 32, 34])
    assert not set(requests[0].prompt.chunks) & set(requests[3].prompt.chunks)
    assert requests[0].prompt.chunks[0] == requests[1].prompt.chunks[0]
