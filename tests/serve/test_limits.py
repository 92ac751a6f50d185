"""What may be in work, of one caller and of all, and how a server ends it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdn.clock import ManualClock
from kdn.config import ServeConfig
from kdn.errors import Cancelled
from kdn.serve import Limits
from kdn.serve.errors import Refused
from kdn.serve.limits import Backpressure, Held, Shutdown, prefix_of, suffix_of
from tests.serve.scripted import Characters

LIMITS = Limits(
    caller_requests=4,
    all_requests=6,
    caller_tokens=100,
    all_tokens=150,
    caller_bytes=10,
    all_bytes=10,
)


def test_a_caller_has_its_share_and_all_have_theirs() -> None:
    load = Backpressure(LIMITS)
    load.take("alice", Held(requests=4))
    with pytest.raises(Refused, match="this key's limit is 4") as caught:
        load.take("alice", Held(requests=1))
    assert (caught.value.fault.status, caught.value.fault.code) == (429, "overloaded")
    load.take("bob", Held(requests=2))
    with pytest.raises(Refused, match="the server's limit is 6") as caught:
        load.take("carol", Held(requests=1))
    assert caught.value.fault.status == 503
    load.give_back("alice", Held(requests=4))
    load.take("carol", Held(requests=1))
    load.check()


def test_engines_that_share_a_key_of_a_node_write_side_by_side() -> None:
    """Nine blocks of 33.5 MB are more than the 256 MiB of another server's caller."""
    load = Backpressure(Limits.of_node(ServeConfig()))
    for _ in range(60):
        load.take("store-*", Held(size_bytes=33_500_000))
    with pytest.raises(Refused, match="this key's limit is 2147483648"):
        load.take("store-*", Held(size_bytes=200_000_000))


def test_two_requests_without_a_body_end_one_after_the_other() -> None:
    """The first to end took the caller with it, and the second failed after its answer."""
    load = Backpressure(LIMITS)
    for _ in range(2):
        load.take("alice", Held())
    for _ in range(2):
        load.give_back("alice", Held())
    load.check()


def test_what_is_alone_fits_however_large_it_is() -> None:
    load = Backpressure(LIMITS)
    load.take("alice", Held(requests=1, tokens=9000))
    with pytest.raises(Refused, match="9000 tokens") as caught:
        load.take("alice", Held(requests=1, tokens=1))
    assert caught.value.fault.retry_after_s == 4  # 9000 tokens at 2000 a second
    load.give_back("alice", Held(requests=1, tokens=9000))
    load.check()


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"), st.integers(0, 5), st.integers(0, 120), st.integers(0, 12)
        ),
        max_size=30,
    ),
)
def test_sums_are_those_of_what_is_held(
    asked: list[tuple[str, int, int, int]],
) -> None:
    load, held = Backpressure(LIMITS), list[tuple[str, Held]]()
    for number, (caller, *amounts) in enumerate(asked):
        if held and number % 3 == 2:
            load.give_back(*held.pop(0))
        one = Held(*amounts)
        with suppress(Refused):
            load.take(caller, one)
            held.append((caller, one))
        load.check()
    for caller, one in held:
        load.give_back(caller, one)
    load.check()


@pytest.mark.parametrize("sure", [prefix_of, suffix_of])
def test_a_part_that_surely_holds_so_many_tokens_is_whole_pieces(sure: Callable[..., str]) -> None:
    """Pieces of 65,536 letters, each a token; a cut may cost 256 of them, so that one holds 65,280."""
    text = "".join(map(str, range(200_000)))[:600_000]
    for most, size in ((65_279, 65_536), (65_280, 131_072), (75_000, 600_000)):
        part = sure(text, Characters(), most)
        assert len(part) == size
        assert part == (text[:size] if sure is prefix_of else text[-size:])


class Answer:
    """Notes how it was ended."""

    error: Exception | None = None

    def abort(self, error: Exception) -> None:
        self.error = error


def test_a_stop_waits_for_answers_as_long_as_the_grace_and_then_ends_them() -> None:
    clock, answer = ManualClock(), Answer()
    stop = Shutdown(30, clock)
    stop.follow(answer)
    assert not stop.is_over()
    with stop.active():
        stop.begin()
        clock.advance(29)
        stop.begin()  # a second time changes nothing
        assert stop.has_begun
        assert not stop.is_over()
        clock.advance(1)
        assert stop.is_over()
    assert isinstance(answer.error, Cancelled)


def test_a_stop_without_work_is_over_at_once() -> None:
    stop = Shutdown(30, ManualClock())
    stop.begin()
    assert stop.is_over()
    early, answer = Shutdown(30, ManualClock()), Answer()
    early.follow(answer)
    early.forget(answer)
    early.begin(grace_s=0)
    assert early.is_over()
    assert answer.error is None
