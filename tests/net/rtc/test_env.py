"""The environment, its rewards, and policies that learn in it."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from tests.net.rtc.table import made_table

from kdn.errors import BadConfig, BadInput
from kdn.net.rtc import CallEnv
from kdn.net.rtc.call import START_RATE_BPS, Call, Link, run_call
from kdn.net.rtc.control.window import Interval
from kdn.net.rtc.history import History, apply_action
from kdn.net.rtc.learn import Curve, Learning, learn_offline, learn_online, steps_to_plateau
from kdn.net.rtc.policy import (
    Learned,
    Policy,
    Safeguarded,
    add_policy,
    load_policies,
    save_policies,
)
from kdn.net.rtc.reward import Paid, Scales, codec_aware, network_only
from kdn.net.rtc.rows import DECODED, FRAME, SKIPPED
from kdn.net.rtc.worlds import held_out_links, validation_links
from kdn.net.world import constant

INTERVAL = Interval(1000.0, 5000, 5000, 5, 0, 60.0, 0.0, 30.0, 1.0)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_environment_passes_gymnasiums_checker() -> None:
    check_env(CallEnv([made_table()], seconds=3.0))


def test_an_action_grows_or_shrinks_the_rate_within_bounds() -> None:
    """1 is half as much again, -1 takes the same back."""
    assert apply_action(1e6, 1.0) == pytest.approx(1.5e6)
    assert apply_action(1.5e6, -1.0) == pytest.approx(1e6)
    assert apply_action(1e6, 100.0) == pytest.approx(2e6)
    assert apply_action(60e3, -1.0) == 60e3
    assert apply_action(12e6, 1.0) == 12e6


def test_the_state_is_ten_steps_of_three_numbers_and_the_rate() -> None:
    history = History()
    history.add(INTERVAL)
    history.add(replace(INTERVAL, mean_rtt=90.0, inflation=0.2, acked_bytes=2500))
    seen = history.observation(2 * START_RATE_BPS)
    assert seen.shape == (31,)
    assert seen[-4:] == pytest.approx([0.2, 0.5, 0.5, np.log(2)], abs=1e-6)
    assert seen[-7:-4] == pytest.approx([0.0, 0.0, 1.0])
    history.add(replace(INTERVAL, acked=0, acked_bytes=0, mean_rtt=0.0))
    assert history.observation(1e6)[-3] == 9.0  # nothing heard counts as a tenfold round trip


def paid(fates: list[int], quality: float, rtt: float = 60.0) -> Paid:
    call = Call(made_table(), Link("x", constant(1e6)))
    frames = np.zeros(len(fates), FRAME)
    frames["fate"], frames["quality"] = fates, quality
    feedback = replace(call.step(START_RATE_BPS), frames=frames, first_frame=0)
    scales = Scales(np.full(50, 0.8), np.full(50, 0.9))
    return Paid(feedback, replace(INTERVAL, mean_rtt=rtt), scales, 60.0, 1e6, 1e6)


def test_the_codec_aware_reward_by_hand() -> None:
    """0.85 between 0.8 and 0.9 is a half; twice the base round trip takes a tenth; no picture costs one."""
    assert codec_aware(paid([DECODED], 0.85)) == pytest.approx(0.5)
    assert codec_aware(paid([DECODED], 0.85, rtt=120.0)) == pytest.approx(0.4)
    assert codec_aware(paid([SKIPPED], 0.0)) == -1.0
    assert codec_aware(paid([], 0.0)) == -1.0


def test_the_network_reward_by_hand() -> None:
    """5,000 bytes in 50 ms are 0.8 Mbit/s of 1; 60 ms: (500 * 0.8 - 60) / 500."""
    assert network_only(paid([DECODED], 0.85)) == pytest.approx((400 - 60) / 500)


def test_a_safeguard_hands_a_lossy_call_to_gcc() -> None:
    link = Link("tiny", constant(0.3e6), queue_packets=4)
    options = {"link": link}
    env = CallEnv([made_table()], seconds=10.0, safeguard=True)
    env.reset(seed=1, options=options)
    steps = []
    done = False
    while not done:
        _, _, _, done, info = env.step(np.array([2.0], np.float32))
        steps.append(info["steps"])
    assert max(steps) == 21
    assert 196 <= sum(steps) <= 199  # ten seconds, but for the reset, which waits to hear something


def test_an_environment_without_tables_or_reward_is_refused() -> None:
    with pytest.raises(BadConfig, match="at least one rate table"):
        CallEnv([])
    with pytest.raises(BadConfig, match="no reward 'joy'; there are codec-aware"):
        CallEnv([made_table()], reward="joy")


def test_a_policy_is_layers_of_tanh(tmp_path: Path) -> None:
    """Two inputs, one hidden number: tanh(1 * 0.5 - 1 * 0.5 + 0.3) * 2 + 0.1."""
    first = (np.array([[1.0, -1.0]], np.float32), np.array([0.3], np.float32))
    last = (np.array([[2.0]], np.float32), np.array([0.1], np.float32))
    policy = Policy("hand", (first, last))
    action = policy.action(np.array([0.5, 0.5], np.float32))
    assert action == pytest.approx(np.tanh(0.3) * 2 + 0.1, abs=1e-6)
    save_policies([policy], tmp_path / "p.npz")
    assert load_policies(tmp_path / "p.npz")["hand"].action(
        np.array([0.5, 0.5], np.float32)
    ) == pytest.approx(action)
    with pytest.raises(BadInput, match="cannot read"):
        load_policies(tmp_path / "absent.npz")


def test_ppo_learns_something_in_a_few_thousand_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table and links that reward a rate: the best of two validations beats a policy that never moves.

    Its logger leaves no folder.
    """
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tables = [made_table()]
    learning = Learning(steps=4096, check_every=2048)
    policy, curve = learn_online(tables, learning)
    assert len(curve.points) == 2
    assert list(tmp_path.glob("SB3-*")) == []
    still = Policy("still", ((np.zeros((1, 31), np.float32), np.zeros(1, np.float32)),))
    link = Link("steady", constant(1.5e6))
    moved = run_call(Call(made_table(), link, seconds=10.0), Learned(policy))
    stood = run_call(Call(made_table(), link, seconds=10.0), Learned(still))
    assert moved.ssim_db != stood.ssim_db
    assert stood.sent_mbps < 0.35


def test_a_policy_learned_from_logs_drives_a_call() -> None:
    policy = learn_offline([made_table()], num_calls=6, steps=300)
    outcome = run_call(
        Call(made_table(), Link("steady", constant(1.5e6)), seconds=10.0), Learned(policy)
    )
    assert outcome.undecoded_share < 0.5


def test_no_seed_learns_on_a_link_that_judges() -> None:
    """Ten times 100,000 is where the held-out links begin, and twenty times where those of validation do."""
    seen: list[int] = []

    def link(seed: int) -> Link:
        seen.append(seed)
        return Link("steady", constant(1e6))

    for seed in (1, 10, 20, 2**32 - 1):
        learn_offline([made_table()], num_calls=2, seed=seed, steps=2, link=link)
    assert seen[:6] == [100_000, 100_001, 2, 3, 4, 5]
    env = CallEnv([made_table()], link, seconds=3.0)
    for i in range(200):
        env.reset(seed=i)
    assert 900_000 < max(seen) < 1_000_000
    judges = {one.name for one in (*held_out_links(), *validation_links())}
    assert judges.isdisjoint(f"random-{seed}" for seed in seen)
    assert {f"random-{seed}" for seed in (1_000_000, 1_000_011, 2_000_000, 2_000_007)} < judges


def test_learning_from_logs_takes_the_steps_asked_for_and_tells_of_them() -> None:
    heard: list[tuple[str, int, int]] = []
    learn_offline(
        [made_table()],
        num_calls=2,
        steps=2,
        tick=lambda part, done, of: heard.append((part, done, of)),
    )
    assert heard == [
        *(("calls", 1, 2), ("calls", 2, 2)),
        ("value", 1, 1),
        *(("policy", 1, 2), ("policy", 2, 2)),
    ]


def test_a_safeguarded_policy_falls_back() -> None:
    """A policy that only ever doubles meets 0.3 Mbit/s: GCC takes over, again and again."""
    mad = Policy("mad", ((np.zeros((1, 31), np.float32), np.full(1, 2.0, np.float32)),))
    guarded = Safeguarded(Learned(mad))
    link = Link("tiny", constant(0.3e6), queue_packets=8)
    outcome = run_call(Call(made_table(), link, seconds=15.0), guarded)
    bare = run_call(Call(made_table(), link, seconds=15.0), Learned(mad))
    assert guarded.fallbacks >= 1
    assert outcome.loss < bare.loss


def test_the_plateau_is_the_mean_of_the_best_three() -> None:
    """From 0 to 1: 95 % is first reached at the fourth validation."""
    points = [(100, 0.0), (200, 0.5), (300, 0.9), (400, 0.96), (500, 1.0), (600, 1.0), (700, 1.0)]
    assert steps_to_plateau(Curve(points)) == 400


def test_a_policy_is_put_beside_those_that_are_in_the_file_by_then(tmp_path: Path) -> None:
    def policy(name: str, weight: float) -> Policy:
        weights = np.full((1, 1), weight, np.float32)
        return Policy(name, ((weights, np.zeros(1, np.float32)),))

    for name, weight in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        add_policy(policy(name, weight), tmp_path / "p.npz")
    found = load_policies(tmp_path / "p.npz")
    assert {name: float(one.layers[0][0][0, 0]) for name, one in found.items()} == {
        "a": 3.0,
        "b": 2.0,
    }
