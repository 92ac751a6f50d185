"""Learn inside a running call, from nothing: PPO whose steps are those of the call itself.

Nothing is simulated ahead and nothing waits: a decision is drawn from the policy as it is, its reward comes
with the next feedback, and gradient steps are taken a few at a time between decisions.  The reward is
`reward.LiveReward`, which needs no table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kdn.net.rtc.call import STALL_MS, START_RATE_BPS, Call, Decision, Feedback
from kdn.net.rtc.codec.picture import ssim_db
from kdn.net.rtc.control.window import interval_of
from kdn.net.rtc.history import HISTORY, History, apply_action
from kdn.net.rtc.policy import Policy
from kdn.net.rtc.reward import LiveReward
from kdn.net.rtc.rows import DECODED, PACKET_LOST
from kdn.net.world.records import MS, SECOND

__all__ = ["InsideSettings", "LearnsInside", "advantages", "windows"]

_STATE = 3 * HISTORY + 1


@dataclass(frozen=True)
class InsideSettings:
    """PPO (Schulman et al. 2017) for one call. A batch of 400 steps is 20 s."""

    batch: int = 400
    epochs: int = 8
    minibatches: int = 4
    gamma: float = 0.95
    trace: float = 0.95
    """Lambda of the generalised advantage estimate."""
    clip: float = 0.2
    entropy: float = 0.0
    rate: float = 1e-3
    log_deviation: float = -1.0
    """Of the actions, at the beginning."""
    gradient_steps: int = 2
    """Taken with each decision while a batch is worked on."""
    seed: int = 1


@dataclass(frozen=True)
class _Drawn:
    """A decision: what was seen, what was drawn, how likely that was, and what was expected of it."""

    state: NDArray[np.float32]
    action: float
    log_likelihood: float
    value: float


class LearnsInside:
    """A controller that learns while it controls; another may take over by setting `bps`."""

    def __init__(self, settings: InsideSettings = InsideSettings()) -> None:
        self.bps = START_RATE_BPS
        self.updates = 0
        """Batches that were learned from."""
        self._set = settings
        self._random = torch.Generator().manual_seed(settings.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self._actor, self._critic = _layers(0.01), _layers(1.0)
        self._deviation = torch.nn.Parameter(torch.tensor(settings.log_deviation))
        parameters = [*self._actor.parameters(), *self._critic.parameters(), self._deviation]
        self._optimizer = torch.optim.Adam(parameters, settings.rate)
        self._history, self._reward = History(), LiveReward()
        self._drawn: _Drawn | None = None
        self._set_bps = self.bps
        self._steps: list[tuple[_Drawn, float]] = []
        self._ends: list[bool] = []
        self._work: Iterator[None] = iter(())
        self._heard = False

    def decide(self, feedback: Feedback) -> Decision:
        """Book what the last decision brought, learn a little, and decide again."""
        interval = interval_of(feedback)
        self._history.add(interval)
        self._book(self._reward.of(feedback, interval))
        self._heard = self._heard or interval.acked > 0
        if not self._heard:
            return Decision(self.bps)
        for _ in range(self._set.gradient_steps):
            next(self._work, None)
        self._drawn = self._draw(self._history.observation(self.bps))
        if len(self._steps) >= self._set.batch:
            self._work = self._learn(self._drawn.value)
        self.bps = self._set_bps = apply_action(self.bps, self._drawn.action)
        return Decision(self.bps)

    def policy(self, name: str = "inside") -> Policy:
        """What it has learned, as a policy that no longer explores."""
        linear = [layer for layer in self._actor if isinstance(layer, torch.nn.Linear)]
        pairs = [(one.weight.detach().numpy(), one.bias.detach().numpy()) for one in linear]
        return Policy(name, tuple((weights.copy(), biases.copy()) for weights, biases in pairs))

    def _book(self, reward: float) -> None:
        """The last decision's reward; a decision that another overruled ends the course before it."""
        if self._drawn is None:
            return
        if self.bps == self._set_bps:
            self._steps.append((self._drawn, reward))
            self._ends.append(False)
        elif self._ends:
            self._ends[-1] = True
        self._drawn = None

    def _draw(self, state: NDArray[np.float32]) -> _Drawn:
        with torch.no_grad():
            seen = torch.from_numpy(state)
            mean, value = float(self._actor(seen)), float(self._critic(seen))
            noise = float(torch.randn((), generator=self._random))
            deviation = float(self._deviation)
        action = mean + float(np.exp(deviation)) * noise
        return _Drawn(state, action, -0.5 * noise * noise - deviation, value)

    def _learn(self, after: float) -> Iterator[None]:
        """The gradient steps of one batch; `after` is what is expected after its last step."""
        steps, ends = self._steps, self._ends
        self._steps, self._ends = [], []
        values = np.array([drawn.value for drawn, _ in steps])
        rewards = np.array([reward for _, reward in steps])
        gains = advantages(rewards, values, ends, after, self._set.gamma, self._set.trace)
        targets = torch.tensor(gains + values, dtype=torch.float32)
        gain = torch.tensor((gains - gains.mean()) / (gains.std() + 1e-6), dtype=torch.float32)
        states = torch.from_numpy(np.stack([drawn.state for drawn, _ in steps]))
        actions = torch.tensor([drawn.action for drawn, _ in steps])
        before = torch.tensor([drawn.log_likelihood for drawn, _ in steps])
        for _ in range(self._set.epochs):
            order = torch.randperm(len(steps), generator=self._random)
            for pick in order.chunk(self._set.minibatches):
                ratio = torch.exp(self._log_likelihood(states[pick], actions[pick]) - before[pick])
                clipped = ratio.clamp(1.0 - self._set.clip, 1.0 + self._set.clip)
                loss = -torch.minimum(ratio * gain[pick], clipped * gain[pick]).mean()
                loss = (
                    loss + 0.5 * (self._critic(states[pick])[:, 0] - targets[pick]).square().mean()
                )
                loss = loss - self._set.entropy * self._deviation
                self._optimizer.zero_grad()
                loss.backward()
                self._optimizer.step()
                yield
        self.updates += 1

    def _log_likelihood(self, states: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Of the actions, but for a constant."""
        off = (actions - self._actor(states)[:, 0]) / self._deviation.exp()
        out: torch.Tensor = -0.5 * off.square() - self._deviation
        return out


def _layers(last_gain: float) -> torch.nn.Sequential:
    nn = torch.nn
    made = nn.Sequential(
        nn.Linear(_STATE, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 1)
    )
    last = made[-1]
    assert isinstance(last, nn.Linear)
    nn.init.orthogonal_(last.weight, last_gain)
    nn.init.zeros_(last.bias)
    return made


def advantages(
    rewards: NDArray[np.float64],
    values: NDArray[np.float64],
    ends: list[bool],
    after: float,
    gamma: float,
    trace: float,
) -> NDArray[np.float64]:
    """Generalised advantage estimates (Schulman et al. 2016).

    After a step that ends a course, its own value stands for what follows.

    >>> advantages(np.array([1.0, 2.0]), np.array([0.5, 1.0]), [False, False], 3.0, 0.5, 0.5)
    array([1.625, 2.5  ])
    """
    out, ahead, following = np.zeros(len(rewards)), 0.0, after
    for i in range(len(rewards) - 1, -1, -1):
        if ends[i]:
            ahead, following = 0.0, float(values[i])
        ahead = float(rewards[i]) + gamma * following - float(values[i]) + gamma * trace * ahead
        out[i], following = ahead, float(values[i])
    return out


def windows(call: Call, every_s: float) -> list[dict[str, float]]:
    """What the viewer got in each `every_s` of a finished call, whole windows only."""
    frames = call.frames
    packets = call.state.sent[: int(call.state.call[0]["next_packet"])]
    moments = np.sort(frames["t_decode"][frames["fate"] == DECODED])
    rows = []
    for number in range(int(call.seconds / every_s)):
        begin, end = (int((number + more) * every_s * SECOND) for more in (0, 1))
        own = frames[(frames["t"] >= begin) & (frames["t"] < end)]
        shown = own[own["fate"] == DECODED]
        sent = packets[(packets["t_send"] >= begin) & (packets["t_send"] < end)]
        inside = moments[(moments > begin) & (moments < end)]
        gaps = np.diff(np.concatenate(([begin], inside, [end]))) / MS
        stalled = float(gaps[gaps > STALL_MS].sum()) / (every_s * 1000.0)
        delays = (shown["t_decode"] - shown["t"]) / MS if len(shown) else np.array([every_s * 1e3])
        rows.append(
            {
                "begin_s": number * every_s,
                "ssim_db": ssim_db(float(shown["quality"].mean())) if len(shown) else 0.0,
                "p95_delay_ms": float(np.percentile(delays, 95)),
                "stall_share": stalled,
                "undecoded_share": 1.0 - len(shown) / max(len(own), 1),
                "sent_mbps": float(sent["size"].sum()) * 8e-6 / every_s,
                "loss": float(np.mean(sent["status"] == PACKET_LOST)) if len(sent) else 0.0,
            }
        )
    return rows
