"""Which queue for the next packet: the lower forecast, with reasons to stay put.

RFC 9331 expects a Scalable sender to keep its codepoint; choosing per packet is outside standard
practice.  The duties that remain are kept per packet by the sender (`world.congestion`): CE on an
ECT(1) packet gets the scalable response, CE on an ECT(0) packet the classic one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kdn.net.l4s.stream import Forecast, newest_delay
from kdn.net.l4s.tokens import WINDOW, new_track, note_ack
from kdn.net.world.records import ECT0, ECT1, MS, SECOND
from kdn.net.world.world import Answer, Question

__all__ = ["Forecaster", "LastValue", "Oracle", "PolicyConfig", "SwiftQueue"]


class Forecaster(Protocol):
    """Tells what a packet would meet in each queue, from ACKs that have arrived."""

    @property
    def num_tokens(self) -> int: ...

    @property
    def track(self) -> Any:
        """The flow's TRACK row."""
        ...

    def hear(self, acks: NDArray[Any]) -> None:
        """Take in LOG rows of the flow, in order of arrival."""
        ...

    def ask(self, now_ns: int, inflight: int) -> tuple[Forecast, Forecast]:
        """(L, C) for a packet sent now."""
        ...


class LastValue:
    """Each queue will do what it did last: the dull twin of the Transformer."""

    def __init__(self) -> None:
        self._track = new_track()
        self._token = np.zeros(8, np.float32)
        self.num_tokens = 0

    @property
    def track(self) -> Any:
        return self._track[0]

    def hear(self, acks: NDArray[Any]) -> None:
        for i in range(len(acks)):
            note_ack(self._track, acks[i], self._token)
        self.num_tokens = int(self._track[0]["count"])

    def ask(self, now_ns: int, inflight: int) -> tuple[Forecast, Forecast]:
        return _flat(newest_delay(self.track, low=True)), _flat(newest_delay(self.track, low=False))


def _flat(delay: float) -> Forecast:
    return Forecast(delay, 0.0, delay, delay, delay)


def _tail_aware(forecast: Forecast) -> float:
    return 0.5 * (forecast.median + forecast.p90)


@dataclass(frozen=True)
class PolicyConfig:
    """Reconstructed and own choices; none is established for the published system."""

    least_gain_ms: float = 0.5
    least_gain_share: float = 0.1
    score: Callable[[Forecast], float] = _tail_aware
    max_silence_rtts: float = 3.0
    """No ACK for so long means no forecast is worth anything."""
    stale_ms: float = 20.0
    """Look into the other queue again after this, when this queue is slow."""
    slow_ms: float = 3.0
    probe_ms: float = 500.0
    """Look into it after this in any case."""
    health_gain: float = 1 / 64
    health_slack: float = 1.25
    penalty_s: float = 10.0
    """A forecaster worse than the last value is not heard for so long."""
    max_classic_share: float = 0.75


class SwiftQueue:
    """Chooses for one L4S flow, whose default is the low-latency queue."""

    def __init__(self, forecaster: Forecaster, config: PolicyConfig = PolicyConfig()) -> None:
        self._forecaster = forecaster
        self._config = config
        self._pending: deque[tuple[int, int, float, float]] = deque(maxlen=4096)
        self._error = 0.0
        self._naive_error = 0.0
        self._judged = 0
        self._worse_since: int | None = None
        self._barred_until = 0
        self._probed_at = -SECOND
        self._classic_share = 0.0
        self.fallbacks = 0

    def choose(self, question: Question) -> Answer:
        """The queue with the lower forecast, the flow's own one when there is none to trust."""
        self._judge(question)
        self._forecaster.hear(question.acks)
        if not self._trusts(question):
            return Answer(ECT1, self._should_probe(question, ECT1, 0.0))
        low, classic = self._forecaster.ask(question.now_ns, question.inflight)
        mark = self._pick(question.mark, low, classic)
        chosen = low if mark == ECT1 else classic
        newest = newest_delay(self._forecaster.track, low=mark == ECT1)
        self._pending.append((question.now_ns, mark, chosen.median, newest))
        self._classic_share += 0.02 * (float(mark == ECT0) - self._classic_share)
        return Answer(mark, self._should_probe(question, mark, chosen.median))

    def _pick(self, mark: int, low: Forecast, classic: Forecast) -> int:
        config = self._config
        here, there = (low, classic) if mark == ECT1 else (classic, low)
        here_ns, there_ns = config.score(here), config.score(there)
        if mark == ECT0 and self._classic_share > config.max_classic_share:
            return ECT1
        if here_ns - there_ns > max(config.least_gain_ms * MS, config.least_gain_share * here_ns):
            return ECT0 if mark == ECT1 else ECT1
        return mark

    def _trusts(self, question: Question) -> bool:
        if self._forecaster.num_tokens < WINDOW // 2 or question.now_ns < self._barred_until:
            return False
        silence = question.now_ns - int(self._forecaster.track["t_ack"])
        return silence <= self._config.max_silence_rtts * question.srtt_ns

    def _should_probe(self, question: Question, mark: int, delay: float) -> bool:
        """Is news of the other queue worth a packet? Sooner when this one is slow."""
        track, config = self._forecaster.track, self._config
        newest = int(track["sent_c"] if mark == ECT1 else track["sent_l"])
        age = question.now_ns - max(newest, self._probed_at)
        slow = delay > config.slow_ms * MS
        if age < (config.stale_ms if slow else config.probe_ms) * MS:
            return False
        self._probed_at = question.now_ns
        return True

    def _judge(self, question: Question) -> None:
        """Compare forecasts whose packets have been acknowledged with what happened."""
        least = float(self._forecaster.track["min_rtt"])
        for row in question.acks:
            t_send = int(row["t_send"])
            while self._pending and self._pending[0][0] < t_send - MS:
                self._pending.popleft()
            if not self._pending or self._pending[0][0] > t_send:
                continue
            _, mark, forecast, newest = self._pending[0]
            if mark == int(row["sent_ecn"]):
                self._pending.popleft()
                self._compare(max(float(row["t_ack"] - t_send) - least, 0.0), forecast, newest)
        self._bar_if_worse(question)

    def _compare(self, actual: float, forecast: float, newest: float) -> None:
        gain = self._config.health_gain
        self._error += gain * (abs(forecast - actual) - self._error)
        self._naive_error += gain * (abs(newest - actual) - self._naive_error)
        self._judged += 1

    def _bar_if_worse(self, question: Question) -> None:
        """Two round trips of being worse than the last value bar the forecaster for a while."""
        worse = self._error > self._config.health_slack * self._naive_error + 0.1 * MS
        if not worse or self._judged < 1 / self._config.health_gain:
            self._worse_since = None
            return
        if self._worse_since is None:
            self._worse_since = question.now_ns
        if question.now_ns - self._worse_since > 2 * question.srtt_ns:
            self._barred_until = question.now_ns + int(self._config.penalty_s * SECOND)
            self._worse_since = None
            self._judged = 0
            self._error = self._naive_error = 0.0
            self.fallbacks += 1


class Oracle:
    """Sees both futures in copies of the world; only a simulation has one."""

    def __init__(self, horizon_s: float = 1.0) -> None:
        self._horizon_s = horizon_s

    def choose(self, question: Question) -> Answer:
        """The queue in which the next packet arrives sooner; a lost packet never does."""
        assert question.world is not None, "an oracle needs a world that can be copied"
        low, classic = question.world.delay_of_each(self._horizon_s)
        if classic is not None and (low is None or classic < low):
            return Answer(ECT0)
        return Answer(ECT1)
