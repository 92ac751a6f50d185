"""Drawing tokens from four logits whose probabilities are easy: 1/2, 1/4, 1/8, 1/8."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from kdn.core import Sampling
from kdn.engine import Sampler

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
