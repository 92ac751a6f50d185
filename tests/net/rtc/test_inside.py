"""Learning inside a call: rewards and advantages by hand, and a call that learns from nothing."""

from __future__ import annotations

import numpy as np
import pytest
from tests.net.rtc.table import made_table

from kdn.net.rtc.call import Call, Feedback, Link
from kdn.net.rtc.control.window import Interval, interval_of
from kdn.net.rtc.inside import InsideSettings, LearnsInside, advantages, windows
from kdn.net.rtc.policy import Learned, Safeguarded
from kdn.net.rtc.reward import LiveReward
from kdn.net.rtc.rows import ACK, DECODED, FRAME, SKIPPED
from kdn.net.rtc.worlds import changing_link
from kdn.net.world import constant


def feedback(qualities: list[float], fate: int = DECODED) -> Feedback:
    frames = np.zeros(len(qualities), FRAME)
    frames["quality"], frames["fate"] = qualities, fate
    return Feedback(0, np.zeros(0, ACK), 0, 0, 0, 0, 300e3, frames, 0)


def interval(rtt: float) -> Interval:
    return Interval(0.0, 1000, 1000, 1, 0, rtt, 0.0, rtt / 2, 0.0)


def test_the_live_reward_by_hand() -> None:
    """Of 0.6 to 0.9, 0.8 lies at two thirds; a round trip of 1.5 times the least costs 0.05."""
    live = LiveReward()
    assert live.of(feedback([0.6, 0.9]), interval(100.0)) == pytest.approx(1.0)
    assert live.of(feedback([0.8]), interval(150.0)) == pytest.approx(2 / 3 - 0.05)
    assert live.of(feedback([0.8], SKIPPED), interval(100.0)) == -1.0


def test_advantages_by_hand() -> None:
    """2 + 0.5 * 3 - 1 = 2.5; 1 + 0.5 * 1 - 0.5 + 0.25 * 2.5 = 1.625; an end stands on its own value."""
    rewards, values = np.array([1.0, 2.0]), np.array([0.5, 1.0])
    assert advantages(rewards, values, [False, False], 3.0, 0.5, 0.5) == pytest.approx([1.625, 2.5])
    assert advantages(rewards, values, [True, False], 3.0, 0.5, 0.5) == pytest.approx([0.75, 2.5])


def run(call: Call, controller: LearnsInside | Safeguarded | Learned) -> None:
    rate = 300e3
    while not call.done:
        rate = controller.decide(call.step(rate)).rate_bps


def test_gradient_steps_are_taken_between_decisions() -> None:
    """30 s are 600 steps: of batches of 100 with 8 gradient steps each, at least four are learned from."""
    settings = InsideSettings(batch=100, epochs=4, minibatches=2)
    learner = LearnsInside(settings)
    before = learner.policy()
    run(Call(made_table(), Link("a", constant(1e6), 20.0), 30.0), learner)
    assert 4 <= learner.updates <= 6
    state = np.ones(31, np.float32)
    assert learner.policy().action(state) != before.action(state)
    assert learner.policy("mine").name == "mine"


def test_equal_seeds_make_equal_calls() -> None:
    rates = []
    for seed in (1, 1, 2):
        learner = LearnsInside(InsideSettings(seed=seed))
        run(Call(made_table(), Link("a", constant(1e6), 20.0), 5.0), learner)
        rates.append(learner.bps)
    assert rates[0] == rates[1] != rates[2]


def test_what_another_decided_is_not_learned_from() -> None:
    """Over a link that loses 30 % GCC drives: fewer steps are booked than the call has."""
    learner = LearnsInside(InsideSettings(batch=10_000))
    guarded = Safeguarded(learner)
    run(Call(made_table(), Link("a", constant(1e6), 20.0, loss=0.3), 20.0), guarded)
    assert guarded.fallbacks > 3
    assert 20 < len(learner._steps) < 380
    assert any(learner._ends)


@pytest.mark.slow
def test_a_long_call_learns_to_fill_its_link() -> None:
    """Ten minutes from nothing: the last third brings more reward than the first minute."""
    call = Call(made_table(), changing_link(5, 600.0), 600.0)
    live, learner, rewards, rate = LiveReward(), LearnsInside(), list[float](), 300e3
    while not call.done:
        heard = call.step(rate)
        rewards.append(live.of(heard, interval_of(heard)))
        rate = learner.decide(heard).rate_bps
    assert np.mean(rewards[-4000:]) > np.mean(rewards[:1200]) + 0.1
    rows = windows(call, 60.0)
    assert len(rows) == 10
    assert rows[-1]["begin_s"] == 540.0
    assert all(0.0 <= row["stall_share"] <= 1.0 for row in rows)
