"""Teach policies: PPO in the environment, or from GCC's logs without any call of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdn.errors import MissingExtra
from kdn.net.rtc.call import START_RATE_BPS, Call, Controller, Link
from kdn.net.rtc.control.gcc import Gcc
from kdn.net.rtc.control.window import interval_of
from kdn.net.rtc.env import CallEnv
from kdn.net.rtc.history import HISTORY, History
from kdn.net.rtc.policy import Learned, Policy
from kdn.net.rtc.reward import Paid, Scales, codec_aware
from kdn.net.rtc.tables import RateTable
from kdn.net.rtc.worlds import random_link, training_seed, validation_links

__all__ = [
    "OFFLINE_STEPS",
    "Curve",
    "Learning",
    "learn_offline",
    "learn_online",
    "steps_to_plateau",
    "validate",
]

OFFLINE_STEPS = 2500
"""Gradient steps of `learn_offline`."""
_STATE = 3 * HISTORY + 1


@dataclass(frozen=True)
class Learning:
    """PPO's settings: NVC-CC's where they are known, the usual ones elsewhere."""

    reward: str = "codec-aware"
    safeguard: bool = False
    steps: int = 60_000
    """Of the environment, at least: as many parts of `check_every` are taken as hold them."""
    seed: int = 1
    rate: float = 1e-3
    batch: int = 2048
    minibatches: int = 16
    epochs: int = 8
    gamma: float = 0.99
    entropy: float = 0.002
    check_every: int = 4096
    """Environment steps between validations."""


@dataclass
class Curve:
    """Validation quality over a training: (environment steps, mean codec-aware reward per step)."""

    points: list[tuple[int, float]] = field(default_factory=list)


def learn_online(
    tables: Sequence[RateTable],
    learning: Learning,
    tick: Callable[[int, float], None] = lambda _steps, _quality: None,
) -> tuple[Policy, Curve]:
    """PPO from scratch; the policy that validated best, and the curve. Raises MissingExtra."""
    try:
        from stable_baselines3 import PPO
        from stable_baselines3.common.logger import Logger
    except ImportError as error:
        raise MissingExtra("policies learn by stable-baselines3: pip install 'kdn[rtc]'") from error

    env = CallEnv(tables, reward=learning.reward, safeguard=learning.safeguard, seconds=20.0)
    ppo = PPO(
        "MlpPolicy",
        env,
        learning_rate=learning.rate,
        n_steps=learning.batch,
        batch_size=learning.batch // learning.minibatches,
        n_epochs=learning.epochs,
        gamma=learning.gamma,
        ent_coef=learning.entropy,
        seed=learning.seed,
        device="cpu",
        policy_kwargs={"net_arch": [32, 16], "log_std_init": -1.0},
    )
    ppo.set_logger(Logger(folder=None, output_formats=[]))  # its own makes a folder each time
    curve, best, kept = Curve(), -np.inf, None
    done = 0
    while done < learning.steps:
        ppo.learn(learning.check_every, reset_num_timesteps=False)
        done = int(ppo.num_timesteps)
        policy = _exported(ppo, learning.reward)
        quality = validate(tables, lambda policy=policy: Learned(policy))  # type: ignore[misc]
        curve.points.append((env.num_steps, quality))
        if quality > best:
            best, kept = quality, policy
        tick(done, quality)
    assert kept is not None
    return kept, curve


def _exported(ppo: Any, name: str) -> Policy:
    """The actor's layers as arrays."""
    linear = [m for m in ppo.policy.mlp_extractor.policy_net if isinstance(m, torch.nn.Linear)]
    layers = [_arrays(layer) for layer in (*linear, ppo.policy.action_net)]
    return Policy(name, tuple(layers))


def _arrays(layer: torch.nn.Linear) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy()


def validate(tables: Sequence[RateTable], make: Callable[[], Controller]) -> float:
    """Mean codec-aware reward per step, over calls on links that no training sees."""
    total, steps = 0.0, 0
    for i, link in enumerate(validation_links()):
        call = Call(tables[i % len(tables)], link, seconds=15.0, seed=i)
        paid = _rewards(call, make())
        total, steps = total + sum(paid), steps + len(paid)
    return total / max(steps, 1)


def _rewards(call: Call, controller: Controller) -> list[float]:
    """The codec-aware reward of every step of a call."""
    scales, link = Scales.of(call), call.link
    base = 2.0 * link.delay_ms + 1500 * 8e3 / link.rate.mean_bps
    rewards, bps, probe = [], START_RATE_BPS, 0.0
    while not call.done:
        feedback = call.step(bps, probe)
        interval = interval_of(feedback)
        paid = Paid(feedback, interval, scales, base, link.rate.mean_bps, bps)
        rewards.append(codec_aware(paid))
        decision = controller.decide(feedback)
        bps, probe = decision.rate_bps, decision.probe_bps
    return rewards


def steps_to_plateau(curve: Curve, share: float = 0.95) -> int:
    """Environment steps until quality first reaches `share` of the way from the start to the plateau.

    The plateau is the mean of the best three validations; the start is the first.
    """
    values = [quality for _, quality in curve.points]
    plateau = float(np.mean(sorted(values)[-3:]))
    first = values[0]
    goal = first + share * (plateau - first)
    return next(steps for steps, quality in curve.points if quality >= goal)


def learn_offline(
    tables: Sequence[RateTable],
    num_calls: int = 80,
    seed: int = 1,
    steps: int = OFFLINE_STEPS,
    link: Callable[[int], Link] = random_link,
    tick: Callable[[str, int, int], None] = lambda _part, _done, _of: None,
) -> Policy:
    """From GCC's logs: actions that were followed by more than the usual are imitated more.

    Advantage-weighted regression (Peng et al. 2019) on calls that GCC drove; no call is the policy's own.
    `link` makes a link of a seed; `tick` hears of each part how much of it is done.
    """
    torch.manual_seed(seed)
    # Ten seeds have a stretch each; the next ten begin further on in the same stretches.
    first = seed * 100_000 + seed // 10 * num_calls
    logs = []
    for i in range(num_calls):
        number = training_seed(first + i)
        logs.append(_logged(tables[i % len(tables)], link(number), number))
        tick("calls", i + 1, num_calls)
    states, actions, returns = (
        torch.from_numpy(np.concatenate([log[part] for log in logs])) for part in range(3)
    )
    value = _mlp(1)
    actor = _mlp(1)
    num = len(states)

    def miss(pick: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = (value(states[pick])[:, 0] - returns[pick]).square()
        return out

    _fit(value, steps // 2, seed, num, miss, partial(tick, "value"))
    with torch.no_grad():
        advantage = returns - value(states)[:, 0]
        weight = torch.exp(advantage / advantage.std().clamp_min(1e-6)).clamp_max(20.0)

    def unlike(pick: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = weight[pick] * (actor(states[pick])[:, 0] - actions[pick]).square()
        return out

    _fit(actor, steps, seed, num, unlike, partial(tick, "policy"))
    return Policy("offline", tuple(_arrays(m) for m in actor if isinstance(m, torch.nn.Linear)))


def _mlp(outputs: int) -> torch.nn.Sequential:
    nn = torch.nn
    return nn.Sequential(
        nn.Linear(_STATE, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, outputs)
    )


def _fit(
    network: torch.nn.Module,
    steps: int,
    seed: int,
    num: int,
    losses: Callable[[torch.Tensor], torch.Tensor],
    tick: Callable[[int, int], None],
) -> None:
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        loss = losses(torch.randint(num, (256,), generator=generator)).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        tick(step + 1, steps)


def _logged(
    table: RateTable, link: Link, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """(states, actions, discounted returns) of one call that GCC drives."""
    call = Call(table, link, seconds=20.0, seed=seed)
    watcher = _Watcher()
    rewards = _rewards(call, watcher)
    returns, ahead = np.zeros(len(rewards), np.float32), 0.0
    for i in range(len(rewards) - 1, -1, -1):
        ahead = rewards[i] + 0.95 * ahead
        returns[i] = ahead
    # A decision after step i acts from step i + 1 on.
    return np.array(watcher.states[:-1]), np.array(watcher.actions[:-1], np.float32), returns[1:]


class _Watcher:
    """GCC, with what a policy would have seen and done in its place written down."""

    def __init__(self) -> None:
        self._gcc, self._history, self._bps = Gcc(), History(), START_RATE_BPS
        self.states: list[NDArray[np.float32]] = []
        self.actions: list[float] = []

    def decide(self, feedback: Any) -> Any:
        self._history.add(interval_of(feedback))
        self.states.append(self._history.observation(self._bps))
        decision = self._gcc.decide(feedback)
        ratio = decision.rate_bps / self._bps
        change = ratio - 1.0 if ratio >= 1.0 else 1.0 - 1.0 / ratio
        self.actions.append(float(np.clip(change / 0.5, -2.0, 2.0)))
        self._bps = decision.rate_bps
        return decision
