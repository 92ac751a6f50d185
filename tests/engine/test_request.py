"""A request's states, its stream, and how it comes in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdn.clock import ManualClock
from kdn.core import Finish, FinishReason, Prompt, Request, Role, Sampling, Segment, Token
from kdn.engine import MOVES, EngineLimits, RequestState, RunningStream, plain
from kdn.engine.request import Intake, RunningRequest
from kdn.errors import EngineFailed, PromptTooLong
from kdn.model import LoadedModel, Tokenizer
from tests.engine.runs import load_tiny

S = RequestState
LIMITS = EngineLimits(kv_bytes=1 << 28)


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path], model_cache: Path) -> LoadedModel:
    return load_tiny(tiny_model("llama"), model_cache)


@pytest.fixture
def intake(tiny: LoadedModel) -> Intake:
    return Intake(tiny, LIMITS, ManualClock(), seed=0)


def new(intake: Intake, **sampling: object) -> RunningRequest:
    prompt = Prompt((Segment(Role.QUESTION, (5, 6, 7)),))
    return intake.take(Request("a", prompt, Sampling(**sampling)), RunningStream(lambda: None))  # type: ignore[arg-type]


def test_the_table_names_every_state_and_every_state_that_goes_on_may_fail() -> None:
    assert set(MOVES) == set(RequestState)
    ends = {state for state, moves in MOVES.items() if not moves}
    assert ends == {S.FINISHED, S.CANCELLED, S.FAILED}
    for state in set(RequestState) - ends:
        assert {S.CANCELLED, S.FAILED} <= MOVES[state]


@pytest.mark.parametrize(
    "way",
    [
        (S.WAITING, S.ADMITTED, S.PREFILLING, S.DECODING, S.FINISHED),
        (S.WAITING, S.ADMITTED, S.PREFILLING, S.FINISHED),
        (S.WAITING, S.ADMITTED, S.PREFILLING, S.ADMITTED, S.PREFILLING, S.DECODING, S.CANCELLED),
        (S.WAITING, S.ADMITTED, S.PREFILLING, S.WAITING, S.FAILED),
    ],
    ids=["answers", "answers with one token", "plans again", "goes back to wait"],
)
def test_a_request_goes_the_ways_that_requests_go(
    way: tuple[RequestState, ...], intake: Intake
) -> None:
    running = new(intake)
    assert running.state is way[0]
    for before, after in pairwise(way):
        assert running.state is before
        running.move(after)
    assert running.has_ended == (not MOVES[way[-1]])


@given(st.lists(st.sampled_from(RequestState), max_size=8))
def test_only_moves_of_the_table_are_made(wanted: list[RequestState]) -> None:
    running = RunningRequest.__new__(RunningRequest)  # its states need nothing else of it
    running.request = Request("a", Prompt(()))
    running._state = S.WAITING
    for to in wanted:
        before = running.state
        if to in MOVES[before]:
            running.move(to)
            assert running.state is to
        else:
            with pytest.raises(AssertionError, match=f"from {before} to {to}"):
                running.move(to)
            assert running.state is before


def test_ending_closes_the_stream_once(intake: Intake) -> None:
    running = new(intake)
    running.end(S.FAILED, EngineFailed("it broke"))
    with pytest.raises(EngineFailed, match="it broke"):
        list(running.stream)
    with pytest.raises(AssertionError):
        running.end(S.FINISHED, running.finish(FinishReason.STOP, 0.0))


def test_a_stream_that_was_read_to_its_end_holds_nothing_more() -> None:
    stream = RunningStream(lambda: None)
    stream.push(Token(5, "a"), None)
    assert [list(stream), list(stream), list(stream)] == [[Token(5, "a")], [], []]


def test_a_listener_hears_what_came_before_it(intake: Intake) -> None:
    stream, heard = new(intake).stream, list[object]()
    stream.push(Token(5, "a"))
    stream.on_event(heard.append)
    stream.push(Token(6, "b"))
    stream.push(None)
    assert heard == [Token(5, "a"), Token(6, "b"), None]


def test_a_listener_that_raises_is_heard_no_more_and_its_request_is_cancelled() -> None:
    woken = list[bool]()
    stream = RunningStream(lambda: woken.append(True))
    asked = list[object]()

    def gone(item: object) -> None:
        asked.append(item)
        raise RuntimeError("the event loop is closed")

    stream.on_event(gone)
    stream.push(Token(5, "a"))
    stream.push(Token(6, "b"))
    assert asked == [Token(5, "a")]
    assert stream.is_cancelled
    assert woken == [True]


def test_an_answer_takes_what_is_left_of_the_context(intake: Intake) -> None:
    """The tiny model's context holds 512 tokens: 3 of the prompt leave 509."""
    assert new(intake, max_tokens=9).max_new_tokens == 9
    assert new(intake, max_tokens=10_000).max_new_tokens == 509


def test_the_end_token_stops_unless_it_is_ignored(intake: Intake) -> None:
    assert new(intake).stop_ids == {256}
    assert new(intake, stop_token_ids=(7,)).stop_ids == {7, 256}
    assert new(intake, stop_token_ids=(7,), ignore_eos=True).stop_ids == {7}


def test_an_end_token_that_the_model_lacks_ends_nothing(tiny: LoadedModel) -> None:
    tokenizer = Tokenizer(tiny.tokenizer.definition, eos_ids=(256, 10**6))
    intake = Intake(replace(tiny, tokenizer=tokenizer), LIMITS, ManualClock(), seed=0)
    assert new(intake, min_tokens=1).stop_ids == {256}


def test_the_budget_bounds_prompt_and_answer(tiny: LoadedModel) -> None:
    """256 tokens of KV are 131,072 bytes in this model: 200 and 56 fit, 200 and 57 do not."""
    small = Intake(tiny, EngineLimits(kv_bytes=131_072), ManualClock(), seed=0)
    prompt = Prompt((Segment(Role.QUESTION, (5,) * 200),))
    fits = small.take(Request("a", prompt, Sampling(max_tokens=56)), RunningStream(lambda: None))
    assert fits.max_new_tokens == 56
    with pytest.raises(PromptTooLong, match="its answer \\(up to 57\\)"):
        small.take(Request("a", prompt, Sampling(max_tokens=57)), RunningStream(lambda: None))


def test_times_are_counted_from_arrival(intake: Intake) -> None:
    """It came at 0, was let in after 2 s, had its first token after 5 s, and ended after 9 s."""
    running = new(intake)
    waiting = running.finish(FinishReason.CANCELLED, 2.0).usage
    assert (waiting.queue_ms, waiting.ttft_ms, waiting.total_ms) == (2000, 2000, 2000)
    assert waiting.recomputed == 0

    running.planned = plain(running.request)
    running.started_s, running.first_token_s = 2.0, 5.0
    usage = running.finish(FinishReason.STOP, 9.0).usage
    assert (usage.queue_ms, usage.ttft_ms, usage.total_ms) == (2000, 5000, 9000)
    assert (usage.prompt_tokens, usage.recomputed) == (3, 3)
    assert isinstance(running.finish(FinishReason.STOP, 9.0), Finish)
