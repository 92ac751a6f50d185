"""Which queue for the next packet: the lower forecast, where forecasts have served the flow well.

RFC 9331 expects a Scalable sender to keep its codepoint; choosing per packet is outside standard
practice.  The duties that remain are kept per packet by the sender (`world.control`): CE on an
ECT(1) packet gets the scalable response, CE on an ECT(0) packet the classic one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from kdn.net.l4s.margins import Margins
from kdn.net.l4s.strategies import MarkingStrategies, Strategy, StrategyConfig
from kdn.net.l4s.stream import Forecast, newest_delay
from kdn.net.l4s.tokens import WINDOW, new_track, note_ack
from kdn.net.world.records import ECT0, ECT1, MS, NIL, SECOND
from kdn.net.world.world import ChooserAnswer, ChooserQuestion

__all__ = ["Forecaster", "LastValue", "Learner", "Oracle", "PolicyConfig", "SwiftQueue"]

_REMEMBERED = 2048
"""Decisions whose outcome is waited for."""
_ORACLE_HORIZON_S = 1.0


_PLAIN = {Strategy.LOW: ECT1, Strategy.CLASSIC: ECT0}


class _Made(NamedTuple):
    """A decision, until its packet is acknowledged: the mark, and what was forecast of its queue."""

    mark: int
    median_ns: float
    newest_ns: float
    tail_ns: float


class Forecaster(Protocol):
    """Tells what a packet would meet in each queue, from ACKs that have arrived."""

    @property
    def num_tokens(self) -> int: ...

    @property
    def track(self) -> Any:
        """The flow's TRACK row."""

    def hear(self, acks: NDArray[Any]) -> None:
        """Take in LOG rows of the flow, in order of arrival."""

    def ask(self, now_ns: int, inflight: int) -> tuple[Forecast, Forecast]:
        """(L, C) for a packet sent now."""


@runtime_checkable
class Learner(Forecaster, Protocol):
    """A forecaster whose weights change while it is used; a step that makes it worse is undone."""

    accepted: int
    """Steps kept."""
    rejected: int
    """Steps taken back."""

    def close(self) -> None:
        """End the learning; forecasts go on."""


class LastValue:
    """Each queue will do what it did last: the plain twin of the Transformer."""

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
    return Forecast(delay, delay)


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
    """Send one packet into the other queue when what was last learned of it is older than this.

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
    strategies: StrategyConfig | None = field(default_factory=StrategyConfig)
    """When the plain account of what packets met overrules forecasts; None: never."""


class SwiftQueue:
    """Chooses for one L4S flow, whose default is the low-latency queue."""

    def __init__(self, forecaster: Forecaster, config: PolicyConfig = PolicyConfig()) -> None:
        self._forecaster = forecaster
        self._config = config
        self._decided: list[int] = []
        self._pending: dict[int, _Made] = {}
        self._margins = Margins(config.miss_gain, config.margin_s)
        self._error = 0.0
        self._naive_error = 0.0
        self._judged = 0
        self._worse_since: int | None = None
        self._barred_until = 0
        self._probed_at = -SECOND
        self._strategies = (
            None if config.strategies is None else MarkingStrategies(config.strategies)
        )
        self.fallbacks = 0

    @property
    def forecaster(self) -> Forecaster:
        """Who is asked."""
        return self._forecaster

    def choose(self, question: ChooserQuestion) -> ChooserAnswer:
        """The strategy's queue, or by packet the one with the lower forecast; the flow's own queue when
        there is no forecast to trust."""
        self._judge(question)
        self._forecaster.hear(question.acks)
        if not self._trusts(question):
            return ChooserAnswer(ECT1, self._should_probe(question, ECT1))
        low, classic = self._forecaster.ask(question.now_ns, question.inflight)
        low_ns = self._margins.raised(ECT1, self._config.score(low))
        classic_ns = self._margins.raised(ECT0, self._config.score(classic))
        strategy = Strategy.BY_PACKET
        if self._strategies is not None:
            strategy = self._strategies.now(question.now_ns)
        mark = _PLAIN.get(strategy) or self._pick(question.mark, low_ns, classic_ns)
        chosen, tail = (low, low_ns) if mark == ECT1 else (classic, classic_ns)
        newest = newest_delay(self._forecaster.track, low=mark == ECT1)
        self._remember(question.now_ns, _Made(mark, chosen.median, newest, tail))
        return ChooserAnswer(mark, self._should_probe(question, mark))

    def _remember(self, now_ns: int, made: _Made) -> None:
        if len(self._decided) == 2 * _REMEMBERED:  # the older half has been acknowledged or lost
            for old in self._decided[:_REMEMBERED]:
                self._pending.pop(old, None)
            del self._decided[:_REMEMBERED]
        self._decided.append(now_ns)
        self._pending[now_ns] = made

    def _pick(self, mark: int, low_ns: float, classic_ns: float) -> int:
        config = self._config
        here_ns, there_ns = (low_ns, classic_ns) if mark == ECT1 else (classic_ns, low_ns)
        if here_ns - there_ns > max(config.least_gain_ms * MS, config.least_gain_share * here_ns):
            return ECT0 if mark == ECT1 else ECT1
        return mark

    def _trusts(self, question: ChooserQuestion) -> bool:
        if self._forecaster.num_tokens < WINDOW // 2 or question.now_ns < self._barred_until:
            return False
        silence = question.now_ns - int(self._forecaster.track["t_ack"])
        return silence <= self._config.max_silence_rtts * question.srtt_ns

    def _should_probe(self, question: ChooserQuestion, mark: int) -> bool:
        """Is it worth a packet to learn of the other queue?"""
        track, config = self._forecaster.track, self._config
        newest = int(track["sent_c"] if mark == ECT1 else track["sent_l"])
        age = question.now_ns - max(newest, self._probed_at)
        if age < config.probe_ms * MS:
            return False
        self._probed_at = question.now_ns
        return True

    def _judge(self, question: ChooserQuestion) -> None:
        """Compare forecasts whose packets have been acknowledged with what happened."""
        least = float(self._forecaster.track["min_rtt"])
        for row in question.acks:
            t_send, sent_as = int(row["t_send"]), int(row["sent_ecn"])
            actual = max(float(row["t_ack"] - t_send) - least, 0.0)
            if self._strategies is not None:
                self._strategies.note(t_send, sent_as == ECT1, actual)
            made = self._pending.pop(self._decided_for(int(row["t_ready"])), None)
            if made is None:
                continue
            if made.mark == sent_as:
                self._compare(actual, made.median_ns, made.newest_ns)
                self._margins.note(made.mark, actual, made.tail_ns, question.now_ns)
        self._bar_if_worse(question)

    def _decided_for(self, t_ready: int) -> int:
        """When it was decided how a packet should go; NIL when no decision is near.

        Packets of the classic queue are overtaken by later ones of the other, and those that wait
        longest by most: they must be counted, in whatever order their ACKs come.
        """
        at = bisect_right(self._decided, t_ready) - 1
        return self._decided[at] if at >= 0 and t_ready - self._decided[at] <= MS else NIL

    def _compare(self, actual: float, forecast: float, newest: float) -> None:
        gain = self._config.health_gain
        self._error += gain * (abs(forecast - actual) - self._error)
        self._naive_error += gain * (abs(newest - actual) - self._naive_error)
        self._judged += 1

    def _bar_if_worse(self, question: ChooserQuestion) -> None:
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

    def choose(self, question: ChooserQuestion) -> ChooserAnswer:
        """The queue in which the next packet arrives sooner; a lost packet never does."""
        assert question.world is not None, "an oracle needs a world that can be copied"
        low, classic = question.world.delay_of_each(_ORACLE_HORIZON_S)
        if classic is not None and (low is None or classic < low):
            return ChooserAnswer(ECT0)
        return ChooserAnswer(ECT1)
