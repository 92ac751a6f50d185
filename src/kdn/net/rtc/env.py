"""A call as a gymnasium environment: one step is 50 ms, an action changes the rate.

State: the last ten steps' latency inflation, latency ratio and receive ratio (as in Aurora and NVC-CC),
and the rate now.  Action: one number; above 0 the rate grows by that share, below it shrinks likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdn.errors import BadConfig, MissingExtra
from kdn.net.rtc.call import START_RATE_BPS, Call, Feedback, Link
from kdn.net.rtc.control.gcc import Gcc
from kdn.net.rtc.control.window import Interval, interval_of
from kdn.net.rtc.history import HISTORY, History, apply_action
from kdn.net.rtc.reward import REWARDS, Paid, Scales
from kdn.net.rtc.tables import RateTable
from kdn.net.rtc.worlds import random_link, training_seed

try:
    import gymnasium
except ImportError as error:
    raise MissingExtra("the environment needs gymnasium: pip install 'kdn[rtc]'") from error

__all__ = ["CallEnv"]

_SAFE_LOSS = 0.10
_SAFE_STEPS = 3
_GCC_STEPS = 20


class CallEnv(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """A call over a random link with a random table, from its start to its end.

    `tables` are what is coded; `link` makes a link of a seed.  With `safeguard`, GCC drives for a second
    when loss passes 10 % for three steps; that second passes within one `step`, so that a learner does
    not see it, and `info["steps"]` counts what it took.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (gymnasium's own attribute)

    def __init__(
        self,
        tables: Sequence[RateTable],
        link: Callable[[int], Link] = random_link,
        reward: str = "codec-aware",
        seconds: float = 30.0,
        safeguard: bool = False,
    ) -> None:
        if not tables:
            raise BadConfig("an environment needs at least one rate table")
        if reward not in REWARDS:
            raise BadConfig(f"no reward {reward!r}; there are {', '.join(REWARDS)}")
        self._tables, self._link, self._seconds = list(tables), link, seconds
        self._reward, self._safeguard = REWARDS[reward], safeguard
        self.num_steps = 0
        """Steps of 50 ms since the environment was made, those that GCC drove included."""
        self.observation_space = gymnasium.spaces.Box(-10.0, 10.0, (3 * HISTORY + 1,), np.float32)
        self.action_space = gymnasium.spaces.Box(-2.0, 2.0, (1,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """A new call. Options: `link` (a Link) and `table` (a RateTable) in place of random ones."""
        super().reset(seed=seed)
        chosen = options or {}
        draw = training_seed(int(self.np_random.integers(1 << 20)))
        table = chosen.get("table") or self._tables[draw % len(self._tables)]
        self._call = Call(table, chosen.get("link") or self._link(draw), self._seconds, seed=draw)
        self._scales = Scales.of(self._call)
        self._history = History()
        self._rate = START_RATE_BPS
        self._gcc, self._lossy, self._driven = Gcc(), 0, 0
        feedback = self._call.step(self._rate)
        while not len(feedback.acks) and not self._call.done:
            feedback = self._call.step(self._rate)
        self._take(feedback)
        return self._history.observation(self._rate), {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Send for 50 ms at the rate after the action."""
        before = self._rate
        self._rate = apply_action(self._rate, float(np.asarray(action).reshape(-1)[0]))
        feedback = self._call.step(self._rate)
        interval = self._take(feedback)
        link_bps = self._call.link.rate.mean_bps
        paid = Paid(feedback, interval, self._scales, self._base_rtt_ms(), link_bps, before)
        reward = self._reward(paid)
        steps = 1 + self._let_gcc_drive()
        self.num_steps += steps
        observation = self._history.observation(self._rate)
        return observation, reward, False, self._call.done, {"steps": steps}

    def _let_gcc_drive(self) -> int:
        """The safeguard's second; how many steps passed."""
        steps = 0
        while self._driven > 0 and not self._call.done:
            self._driven -= 1
            steps += 1
            self._rate = self._gcc_bps
            self._take(self._call.step(self._rate))
        return steps

    @property
    def call(self) -> Call:
        """The running call."""
        return self._call

    def _base_rtt_ms(self) -> float:
        link = self._call.link
        return 2.0 * link.delay_ms + 1500 * 8e3 / link.rate.mean_bps

    def _take(self, feedback: Feedback) -> Interval:
        interval = interval_of(feedback)
        self._history.add(interval)
        if self._safeguard:
            self._guard(feedback, interval)
        return interval

    def _guard(self, feedback: Feedback, interval: Interval) -> None:
        """OnRL's: an abnormal state hands the call to GCC for a second."""
        self._gcc_bps = self._gcc.decide(feedback).rate_bps
        self._lossy = self._lossy + 1 if interval.loss > _SAFE_LOSS else 0
        if self._lossy >= _SAFE_STEPS and not self._driven:
            self._driven, self._lossy = _GCC_STEPS, 0
