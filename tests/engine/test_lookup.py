"""Guessing from the prompt: what is guessed, and that no answer changes by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdn.clock import ManualClock
from kdn.core import Request, RetainedKV, Sampling, Token, TokenIds
from kdn.engine import Engine, EngineLimits
from kdn.engine.lookup import PromptLookup
from kdn.model import LoadedModel
from kdn.model.attention import TorchAttention
from kdn.trace import Recorder
from tests.engine.runs import load_tiny, some_tokens
from tests.engine.test_engine import NoReuse, prompt_of

ROOM = 1 << 28


@pytest.fixture(scope="module")
def tiny(tiny_model: Callable[..., Path], model_cache: Path) -> LoadedModel:
    return load_tiny(tiny_model("llama"), model_cache)


def test_what_followed_the_last_tokens_before_is_guessed() -> None:
    """5 6 7 stood first before 8 9: with 6 7 at the end, these and the next are guessed."""
    lookup = PromptLookup([5, 6, 7, 8, 9, 1, 6, 7], max_tokens=4)
    assert lookup.guess(16) == (8, 9, 1)
    assert lookup.guess(2) == (8, 9)
    lookup.append(8)
    assert lookup.guess(1) == (9,)
    lookup.append(3)
    assert lookup.guess(4) == (), "8 3 never stood anywhere"


def test_what_repeats_itself_is_guessed_to_go_on() -> None:
    assert PromptLookup([4, 1, 2, 1, 2], max_tokens=7).guess(16) == (1, 2, 1)
    assert PromptLookup([7, 7, 7], max_tokens=3).guess(16) == (7, 7, 7)


def test_the_latest_place_and_the_longest_agreement_win() -> None:
    assert PromptLookup([1, 2, 3, 1, 2, 4, 1, 2], max_tokens=1).guess(1) == (4,)
    longer = [9, 1, 2, 3, 0, 1, 2, 4, 0, 9, 1, 2]
    assert PromptLookup(longer, max_tokens=1).guess(1) == (3,), "9 1 2 stood before 3"


def test_right_guesses_grow_and_wrong_ones_rest() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2], max_tokens=6)
    assert len(lookup.guess(16)) == 3
    lookup.learn(3, 3)
    assert len(lookup.guess(16)) == 6, "doubled"
    lookup.learn(6, 2)
    assert len(lookup.guess(16)) == 3, "as many as were right, and one"
    for _ in range(3):
        lookup.learn(1, 0)
    for token in [3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7, 8]:
        assert lookup.guess(16) == ()
        lookup.append(token)
    lookup.append(9)
    assert lookup.guess(16) == (1,), "sixteen tokens later it tries again, with one"
    assert (lookup.num_guessed, lookup.num_right) == (12, 5)


@given(tokens=st.lists(st.integers(0, 3), max_size=60), max_tokens=st.integers(1, 8))
def test_a_guess_is_what_stood_behind_an_equal_end(tokens: list[int], max_tokens: int) -> None:
    guess = PromptLookup(tokens, max_tokens).guess(16)
    assert len(guess) <= max_tokens
    if guess:
        behind = [at for at in range(2, len(tokens)) if tokens[at - 2 : at] == tokens[-2:]]
        assert any((tokens + list(guess))[at : at + len(guess)] == list(guess) for at in behind)


def run(
    model: LoadedModel, prompts: list[TokenIds], sampling: Sampling, speculative_tokens: int
) -> tuple[list[list[Token]], list[RetainedKV], list[tuple[int, int]]]:
    """Tokens by request, what was retained, and by request how many were guessed and right."""
    trace, planner = Recorder(), NoReuse()
    limits = EngineLimits(kv_bytes=ROOM, speculative_tokens=speculative_tokens)
    engine = Engine(
        model, TorchAttention(), planner, limits, ManualClock(), trace=trace, threaded=False
    )
    streams = [
        engine.submit(Request(str(n), prompt_of(tokens), sampling))
        for n, tokens in enumerate(prompts)
    ]
    while engine.step():
        engine.check()
    found = [[event for event in stream if isinstance(event, Token)] for stream in streams]
    ends = trace.events("engine.finish")
    counts = [(number(e.fields["guessed"]), number(e.fields["guessed_right"])) for e in ends]
    return found, planner.kept, counts


def number(value: object) -> int:
    assert isinstance(value, int)
    return value


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_tokens=80, ignore_eos=True),
        Sampling(max_tokens=80, ignore_eos=True, logprobs=3),
        Sampling(max_tokens=80, ignore_eos=True, temperature=0.3, seed=5),
        Sampling(max_tokens=80, ignore_eos=True, temperature=0.8, top_p=0.9, seed=5),
        Sampling(max_tokens=41, ignore_eos=False),
    ],
    ids=["greedy", "logprobs", "nearly greedy", "sampled", "to an end"],
)
def test_answers_are_those_without_guesses(sampling: Sampling, tiny: LoadedModel) -> None:
    """Tokens, texts, log-probabilities and retained KV, alone and with two others, bit for bit."""
    phrase = some_tokens(12, 200, seed=3)
    prompts = [phrase * 4, some_tokens(40, 200, seed=4), phrase * 2]
    for together in (prompts[:1], prompts):
        plain, plain_kept, none = run(tiny, together, sampling, speculative_tokens=0)
        guessed, kept, counts = run(tiny, together, sampling, speculative_tokens=6)
        assert guessed == plain
        assert none == [(0, 0)] * len(together)
        by_tokens = {one.token_ids: one.kv for one in plain_kept}
        assert by_tokens.keys() == {one.token_ids for one in kept}
        assert all(torch.equal(one.kv, by_tokens[one.token_ids]) for one in kept)
    assert sum(guessed for guessed, _ in counts) > 0


def test_a_guess_never_goes_past_the_longest_answer(tiny: LoadedModel) -> None:
    prompt = some_tokens(6, 200, seed=3) * 10
    found, _, _ = run(
        tiny, [prompt], Sampling(max_tokens=3, ignore_eos=True), speculative_tokens=16
    )
    assert len(found[0]) == 3


def test_right_guesses_save_steps(tiny: LoadedModel) -> None:
    """The model always says 7.  The first comes with the prompt, and two behind ends that stood nowhere yet;
    then 4 with a guess of 3, five times 7 with one of 6: 1 + 2 + 4 + 35 are 42, one more than wanted."""
    always = Sampling(max_tokens=41, ignore_eos=True, logit_bias={7: 1e6})
    prompt = some_tokens(20, 200, seed=3)
    plain, _, _ = run(tiny, [prompt], always, speculative_tokens=0)
    found, _, ((guessed, right),) = run(tiny, [prompt], always, speculative_tokens=6)
    assert [token.token_id for token in found[0]] == [7] * 41
    assert found == plain
    assert guessed == right == 3 + 4 * 6, "what ends the answer is not counted"
