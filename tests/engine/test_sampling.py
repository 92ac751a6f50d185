"""Drawing tokens from four logits whose probabilities are easy: 1/2, 1/4, 1/8, 1/8."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdn.core import Sampling
from kdn.engine import Sampler
from kdn.errors import EngineFailed

LOGITS = torch.log(torch.tensor([0.125, 0.5, 0.25, 0.125]))


def drawn(sampling: Sampling, times: int = 400) -> Counter[int]:
    sampler = Sampler(sampling, seed=1)
    return Counter(sampler.draw(LOGITS).token_id for _ in range(times))


def test_greedy_takes_the_largest() -> None:
    assert drawn(Sampling(), 5) == {1: 5}


def test_temperature_one_draws_by_probability() -> None:
    counts = drawn(Sampling(temperature=1.0), 4000)
    assert counts[1] / 4000 == pytest.approx(0.5, abs=0.04)
    assert counts[2] / 4000 == pytest.approx(0.25, abs=0.04)


def test_top_k_one_is_greedy() -> None:
    assert set(drawn(Sampling(temperature=2.0, top_k=1))) == {1}


@pytest.mark.parametrize(
    ("top_p", "left"), [(0.4, {1}), (0.5, {1}), (0.6, {1, 2}), (1.0, {0, 1, 2, 3})]
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, left: set[int]) -> None:
    assert set(drawn(Sampling(temperature=1.0, top_p=top_p))) == left


def test_min_p_is_a_share_of_the_largest() -> None:
    """0.4 of 1/2 is 0.2: a quarter stays, an eighth goes."""
    assert set(drawn(Sampling(temperature=1.0, min_p=0.4))) == {1, 2}


def test_equal_seeds_draw_equally_and_others_do_not() -> None:
    def sequence(seed: int) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, seed=seed), seed=99)
        return [sampler.draw(LOGITS).token_id for _ in range(30)]

    assert sequence(7) == sequence(7)
    assert sequence(7) != sequence(8)


def test_a_bias_lifts_a_token_above_the_others() -> None:
    assert drawn(Sampling(logit_bias={3: 10.0}), 3) == {3: 3}
    assert drawn(Sampling(logit_bias={1: -100.0}), 3) == {2: 3}


def test_logprobs_are_natural_logs_of_the_probabilities() -> None:
    found = Sampler(Sampling(logprobs=2), seed=0).draw(LOGITS)
    assert found.logprob == pytest.approx(-0.6931, abs=1e-3)
    assert [token for token, _ in found.alternatives] == [1, 2]
    assert found.alternatives[1][1] == pytest.approx(-1.3863, abs=1e-3)
    assert Sampler(Sampling(), seed=0).draw(LOGITS).logprob is None


@pytest.mark.parametrize("temperature", [1e-320, 1e-40, 1e-39, 1e-12, 1e-6])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    assert drawn(Sampling(temperature=temperature), 20) == {1: 20}


@given(
    st.lists(st.floats(-1e30, 1e30, allow_subnormal=False), min_size=1, max_size=12),
    st.floats(0, 1e300, allow_subnormal=False),
    st.floats(0, 1, allow_subnormal=False),
    st.floats(0, 1, allow_subnormal=False),
    st.dictionaries(
        st.integers(0, 11), st.floats(-1e300, 1e300, allow_subnormal=False), max_size=3
    ),
)
def test_whatever_is_finite_can_be_drawn_from(
    logits: list[float], temperature: float, top_p: float, min_p: float, bias: dict[int, float]
) -> None:
    bias = {token: value for token, value in bias.items() if token < len(logits)}
    sampling = Sampling(
        temperature=temperature, top_p=top_p, min_p=min_p, logit_bias=bias, logprobs=1
    )
    found = Sampler(sampling, seed=0).draw(torch.tensor(logits))
    assert 0 <= found.token_id < len(logits)
    assert found.logprob is not None
    assert found.logprob <= 1e-3


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_an_error_of_the_model(wrong: float) -> None:
    logits = LOGITS.clone()
    logits[2] = wrong
    with pytest.raises(EngineFailed, match="logits that are not finite"):
        Sampler(Sampling(), seed=0).draw(logits)


def sorted_whole(sampling: Sampling, logits: torch.Tensor, generator: torch.Generator) -> int:
    """The plain twin: the whole vocabulary sorted, the survivors kept, one of them drawn."""
    probs = torch.softmax(logits / sampling.temperature, dim=-1)
    values, order = torch.sort(probs, descending=True, stable=True)
    keep = torch.ones_like(values, dtype=torch.bool)
    if sampling.top_k > 0:
        keep[sampling.top_k :] = False
    if sampling.top_p < 1:
        keep &= values.cumsum(0) - values < sampling.top_p
    if sampling.min_p > 0:
        keep &= values >= sampling.min_p * values[0]
    keep[0] = True
    values = values * keep
    place = torch.multinomial(values / values.sum(), 1, generator=generator)
    return int(order[place])


@given(
    seed=st.integers(0, 1000),
    sharpness=st.sampled_from([0.0, 0.3, 2.0, 8.0]),
    ties=st.booleans(),
    size=st.sampled_from([5, 300, 20_000]),
    top_k=st.sampled_from([0, 1, 40, 500]),
    top_p=st.sampled_from([1.0, 0.99, 0.9, 0.1, 1e-6]),
    min_p=st.sampled_from([0.0, 0.05, 0.9]),
    temperature=st.sampled_from([0.7, 1.0, 1.6]),
)
def test_sorting_only_what_may_survive_draws_what_sorting_all_draws(
    seed: int,
    sharpness: float,
    ties: bool,
    size: int,
    top_k: int,
    top_p: float,
    min_p: float,
    temperature: float,
) -> None:
    if top_k <= 0 and top_p >= 1 and min_p <= 0:
        return  # nothing is sorted then
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    logits = sharpness * torch.randn(size, generator=torch.Generator().manual_seed(seed))
    if ties:
        logits = logits.round()
    generator = torch.Generator().manual_seed(seed)
    sampler = Sampler(sampling, seed=0)
    for _ in range(3):
        assert sampler.draw(logits).token_id == sorted_whole(sampling, logits, generator)


def test_without_truncation_nothing_is_sorted_and_draws_go_by_probability() -> None:
    logits = torch.zeros(5000)
    logits[4000] = math.log(4999)  # half of all
    sampler = Sampler(Sampling(temperature=1.0, seed=3), seed=0)
    hits = sum(sampler.draw(logits).token_id == 4000 for _ in range(400))
    assert 160 < hits < 240
