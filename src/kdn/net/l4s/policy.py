"""Which queue for the next packet: the lower forecast, with reasons to stay put.

RFC 9331 expects a Scalable sender to keep its codepoint; choosing per packet is outside standard
practice.  The duties that remain are kept per packet by the sender (`world.congestion`): CE on an
ECT(1) packet gets the scalable response, CE on an ECT(0) packet the classic one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from kdn.net.l4s.margins import Margins
from kdn.net.l4s.stream import Forecast, newest_delay
from kdn.net.l4s.tokens import WINDOW, new_track, note_ack
from kdn.net.world.records import ECT0, ECT1, MS, SECOND
from kdn.net.world.world import Answer, Question

__all__ = ["Forecaster", "LastValue", "Learner", "Oracle", "PolicyConfig", "SwiftQueue"]


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


@runtime_checkable
class Learner(Forecaster, Protocol):
    """A forecaster whose weights change while it is used; a step that makes it worse is undone."""

    accepted: int
    """Steps kept."""
    rejected: int
    """Steps taken back."""

    def close(self) -> None:
        """End the learning; forecasts go on."""
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


def _tail(forecast: Forecast) -> float:
    return forecast.p99


@dataclass(frozen=True)
class PolicyConfig:
    """Reconstructed and own choices; none is established for the published system.

    Numbers were picked on random training conditions, not on the evaluation list.
    """

    least_gain_ms: float = 0.1
    least_gain_share: float = 0.02
    score: Callable[[Forecast], float] = _tail
    """What is compared. Queues are judged by their tails: means hide what the tail is made of."""
    max_silence_rtts: float = 3.0
    """No ACK for so long means no forecast is worth anything."""
    probe_ms: float = 2000.0
    """Send one packet into the other queue when its newest news is older than this.

    One packet in 32, as first drawn, is three per cent of packets in what is usually the worse
    queue: it makes the 99th percentile by itself.
    """
    health_gain: float = 1 / 64
    health_slack: float = 1.25
    penalty_s: float = 10.0
    """A forecaster worse than the last value is not heard for so long."""
    miss_gain: float = 0.4
    """How much a packet above its 99th percentile raises the queue's forecasts (squashed scale)."""
    margin_s: float = 8.0
    """A queue that is not used is forgiven in about this time, and then looked at again."""


class SwiftQueue:
    """Chooses for one L4S flow, whose default is the low-latency queue."""

    def __init__(self, forecaster: Forecaster, config: PolicyConfig = PolicyConfig()) -> None:
        self._forecaster = forecaster
        self._config = config
        self._pending: deque[tuple[int, int, Forecast, float, float]] = deque(maxlen=4096)
        self._margins = Margins(config.miss_gain, config.margin_s)
        self._error = 0.0
        self._naive_error = 0.0
        self._judged = 0
        self._worse_since: int | None = None
        self._barred_until = 0
        self._probed_at = -SECOND
        self.fallbacks = 0

    @property
    def forecaster(self) -> Forecaster:
        """Who is asked."""
        return self._forecaster

    def choose(self, question: Question) -> Answer:
        """The queue with the lower forecast, the flow's own one when there is none to trust."""
        self._judge(question)
        self._forecaster.hear(question.acks)
        if not self._trusts(question):
            return Answer(ECT1, self._should_probe(question, ECT1))
        low, classic = self._forecaster.ask(question.now_ns, question.inflight)
        low_ns = self._margins.raised(ECT1, self._config.score(low))
        classic_ns = self._margins.raised(ECT0, self._config.score(classic))
        mark = self._pick(question.mark, low_ns, classic_ns)
        chosen, tail = (low, low_ns) if mark == ECT1 else (classic, classic_ns)
        newest = newest_delay(self._forecaster.track, low=mark == ECT1)
        self._pending.append((question.now_ns, mark, chosen, newest, tail))
        return Answer(mark, self._should_probe(question, mark))

    def _pick(self, mark: int, low_ns: float, classic_ns: float) -> int:
        config = self._config
        here_ns, there_ns = (low_ns, classic_ns) if mark == ECT1 else (classic_ns, low_ns)
        if here_ns - there_ns > max(config.least_gain_ms * MS, config.least_gain_share * here_ns):
            return ECT0 if mark == ECT1 else ECT1
        return mark

    def _trusts(self, question: Question) -> bool:
        if self._forecaster.num_tokens < WINDOW // 2 or question.now_ns < self._barred_until:
            return False
        silence = question.now_ns - int(self._forecaster.track["t_ack"])
        return silence <= self._config.max_silence_rtts * question.srtt_ns

    def _should_probe(self, question: Question, mark: int) -> bool:
        """Is news of the other queue worth a packet?"""
        track, config = self._forecaster.track, self._config
        newest = int(track["sent_c"] if mark == ECT1 else track["sent_l"])
        age = question.now_ns - max(newest, self._probed_at)
        if age < config.probe_ms * MS:
            return False
        self._probed_at = question.now_ns
        return True

    def _judge(self, question: Question) -> None:
        """Compare forecasts whose packets have been acknowledged with what happened."""
        least = float(self._forecaster.track["min_rtt"])
        for row in question.acks:
            t_send, sent_as = int(row["t_send"]), int(row["sent_ecn"])
            actual = max(float(row["t_ack"] - t_send) - least, 0.0)
            while self._pending and self._pending[0][0] < t_send - MS:
                self._pending.popleft()
            if not self._pending or self._pending[0][0] > t_send:
                continue
            _, mark, forecast, newest, tail = self._pending[0]
            if mark == sent_as:
                self._pending.popleft()
                self._compare(actual, forecast.median, newest)
                self._margins.note(mark, actual, tail, question.now_ns)
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
