"""The rule for choosing, its brakes, and what it does in a world."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kdn.errors import BadInput, WeightsError
from kdn.net.l4s.choosers import POLICIES, chooser, packaged_weights, read_weights
from kdn.net.l4s.evaluate import delays_ms, judge, policy_world
from kdn.net.l4s.policy import LastValue, PolicyConfig, SwiftQueue
from kdn.net.l4s.scenarios import EVALUATION, training_scenario, with_adopters
from kdn.net.l4s.stream import Forecast
from kdn.net.l4s.tokens import new_track
from kdn.net.world import (
    CE,
    ECT0,
    ECT1,
    ChooserQuestion,
    Flow,
    Hop,
    Scenario,
    World,
    constant,
    steady,
)
from kdn.net.world.records import LOG, MS, SECOND


class Fixed:
    """Foretells the same two delays for ever."""

    def __init__(self, low_ms: float, classic_ms: float) -> None:
        self.low_ms, self.classic_ms = low_ms, classic_ms
        self.num_tokens = 100
        self._track = new_track()
        self._track["sent_l"] = self._track["sent_c"] = 10 * SECOND

    @property
    def track(self) -> Any:
        return self._track[0]

    def hear(self, acks: NDArray[Any]) -> None:
        if len(acks):
            self._track["t_ack"] = acks["t_ack"][-1]

    def ask(self, now_ns: int, inflight: int) -> tuple[Forecast, Forecast]:
        low, classic = self.low_ms * MS, self.classic_ms * MS
        return Forecast(low, low), Forecast(classic, classic)


def question(now_ms: float, mark: int = ECT1, ack_ms: float | None = None) -> ChooserQuestion:
    acks = np.zeros(0 if ack_ms is None else 1, LOG)
    if ack_ms is not None:
        acks["t_send"], acks["t_ack"] = int((ack_ms - 20) * MS), int(ack_ms * MS)
        acks["t_ready"] = acks["t_send"]
        acks["sent_ecn"] = ECT1
    return ChooserQuestion(0, int(now_ms * MS), acks, 1500, mark, 1500, 20.0 * MS)


FORECASTS = PolicyConfig(strategies=None)


def pick(low_ms: float, classic_ms: float, mark: int) -> int:
    policy = SwiftQueue(Fixed(low_ms, classic_ms), FORECASTS)
    return policy.choose(question(101, mark, ack_ms=100)).mark


def test_the_lower_forecast_wins_by_a_margin_or_not_at_all() -> None:
    assert pick(8.0, 2.0, ECT1) == ECT0
    assert pick(2.05, 2.0, ECT1) == ECT1  # less than a tenth of a millisecond
    assert pick(20.0, 19.7, ECT1) == ECT1  # less than a fiftieth
    assert pick(1.0, 2.0, ECT0) == ECT1


def test_without_fresh_acks_the_flow_keeps_its_class() -> None:
    policy = SwiftQueue(Fixed(50.0, 1.0), FORECASTS)
    assert policy.choose(question(100, ack_ms=99)).mark == ECT0
    assert policy.choose(question(200, mark=ECT0)).mark == ECT1  # three round trips of silence


def test_a_young_flow_keeps_its_class() -> None:
    young = Fixed(50.0, 1.0)
    young.num_tokens = 5
    assert SwiftQueue(young).choose(question(100, ack_ms=99)).mark == ECT1


def test_the_other_queue_is_looked_into_now_and_then() -> None:
    policy = SwiftQueue(Fixed(1.0, 9.0), PolicyConfig(probe_ms=500.0))
    start = 10_000
    probes = [
        t
        for t in range(0, 2000, 10)
        if policy.choose(question(start + t, ack_ms=start + t - 1)).probe
    ]
    assert probes == [500, 1000, 1500]


def test_a_forecaster_worse_than_the_last_value_is_barred() -> None:
    """It always says 80 ms for a queue that always shows none."""
    policy = SwiftQueue(Fixed(80.0, 200.0))
    for t in range(10_000, 10_400, 2):
        acks = np.zeros(1, LOG)
        acks["t_send"], acks["t_ack"], acks["sent_ecn"] = (t - 2) * MS, t * MS, ECT1
        acks["t_ready"] = acks["t_send"]
        policy._forecaster.track["min_rtt"] = 2 * MS
        policy.choose(ChooserQuestion(0, t * MS, acks, 1500, ECT1, 1500, 2.0 * MS))
    assert policy.fallbacks == 1


def test_a_bad_surprise_raises_that_queues_forecasts() -> None:
    """A classic packet meets 60 ms where 1 ms was foretold, again and again: the flow goes home."""
    policy = SwiftQueue(Fixed(8.0, 1.0), PolicyConfig(health_slack=1e9, strategies=None))
    policy._forecaster.track["min_rtt"] = 2 * MS
    marks: list[int] = []
    for t in range(10_000, 11_200, 100):
        acks = np.zeros(2, LOG)
        acks["t_ready"] = acks["t_send"] = [(t - 100) * MS, (t - 10) * MS]
        acks["t_ack"] = [(t - 38) * MS, (t - 8) * MS]
        acks["sent_ecn"] = [marks[-1] if marks else ECT1, ECT1]
        mark = marks[-1] if marks else ECT1
        marks.append(
            policy.choose(ChooserQuestion(0, t * MS, acks, 1500, mark, 1500, 80.0 * MS)).mark
        )
    assert marks[0] == ECT0
    assert ECT1 in marks[1:]


def test_packets_that_were_overtaken_are_judged_too() -> None:
    """A classic packet's ACK comes 60 ms late, behind those of 5 packets sent after it."""
    policy = SwiftQueue(Fixed(8.0, 1.0), FORECASTS)
    policy._forecaster.track["min_rtt"] = 2 * MS
    assert policy.choose(question(10_000, ack_ms=9_999)).mark == ECT0
    for t in range(10_010, 10_060, 10):
        policy.choose(question(t, mark=ECT0, ack_ms=t - 1))
    late = np.zeros(1, LOG)
    late["t_send"], late["t_ack"], late["sent_ecn"] = 10_003 * MS, 10_062 * MS, ECT0
    late["t_ready"] = 10_000 * MS  # deciding took 3 ms
    assert policy._margins.raised(ECT0, 1.0 * MS) == 1.0 * MS
    policy.choose(ChooserQuestion(0, 10_063 * MS, late, 1500, ECT0, 1500, 20.0 * MS))
    assert policy._margins.raised(ECT0, 1.0 * MS) > 1.1 * MS


def test_forecasts_that_prove_wrong_are_overruled_by_what_packets_met() -> None:
    """The forecast praises the classic queue, where packets meet 80 ms; the other gives 5."""

    def classic_share(config: PolicyConfig) -> float:
        policy = SwiftQueue(Fixed(6.0, 4.0), config)
        policy._forecaster.track["min_rtt"] = 2 * MS
        mark, sent, marks = ECT1, list[tuple[int, int]](), list[int]()
        for t in range(10_000, 14_000, 2):
            acks = np.zeros(len(sent), LOG)
            arrived = [(at, m) for at, m in sent if at + (82 if m == ECT0 else 7) <= t]
            sent = [one for one in sent if one not in arrived]
            acks = acks[: len(arrived)]
            for row, (at, m) in zip(acks, arrived, strict=True):
                row["t_ready"] = row["t_send"] = at * MS
                row["sent_ecn"] = m
                row["t_ack"] = (at + (82 if m == ECT0 else 7)) * MS
            mark = policy.choose(ChooserQuestion(0, t * MS, acks, 1500, mark, 1500, 30.0 * MS)).mark
            sent.append((t, mark))
            marks.append(mark)
        return marks[500:].count(ECT0) / len(marks[500:])

    assert classic_share(PolicyConfig(health_slack=1e9, miss_gain=0.0, strategies=None)) == 1.0
    assert classic_share(PolicyConfig(health_slack=1e9, miss_gain=0.0)) < 0.02


def test_every_policy_runs_and_books_what_it_did() -> None:
    base = EVALUATION[1]
    for name in POLICIES:
        world = policy_world(base, name, seconds=2.5, cost_us=100.0)
        world.run()
        world.check()
        seen = judge(world, name, "1/16")
        assert 0.0 <= seen.classic_share <= 1.0
        assert seen.p50_ms <= seen.p99_ms <= seen.p999_ms
        if name == "all-L":
            assert seen.classic_share == 0.0


def test_the_oracle_is_better_than_staying() -> None:
    base = EVALUATION[1]
    p99 = {}
    for name in ("all-L", "oracle"):
        world = policy_world(base, name, seconds=4.0)
        world.run()
        p99[name] = float(np.percentile(delays_ms(world, [0]), 99))
    assert p99["oracle"] < 0.6 * p99["all-L"]


def test_marks_on_classic_packets_get_the_classic_response() -> None:
    """Half of the window at most once a round trip, whatever the flow's own class is."""
    hop = Hop(constant(4e6))
    flow = Flow("prague", "ect1", steady(8.0), marking="ask", in_ms=10.0)

    class Classic:
        def choose(self, question: ChooserQuestion) -> Any:
            from kdn.net.world.world import ChooserAnswer

            return ChooserAnswer(ECT0)

    world = World(Scenario("classic", (hop,), (flow,), seconds=8.0), {0: Classic()})
    world.run()
    world.check()
    log = world.log()
    assert (log["ecn"] == CE).sum() > 3
    assert world.totals(0).goodput_mbps > 2.5


def test_training_and_evaluation_share_no_condition() -> None:
    names = {scenario.name for scenario in EVALUATION}
    assert len(names) == len(EVALUATION)
    assert not any(training_scenario(seed).name in names for seed in range(20))
    assert training_scenario(5).flows == training_scenario(5).flows


def test_a_crowd_of_adopters_takes_flow_zeros_place() -> None:
    crowd = with_adopters(EVALUATION[1], 3, "ask")
    assert len(crowd.flows) == len(EVALUATION[1].flows) + 2
    assert [flow.marking for flow in crowd.flows[:3]] == ["ask"] * 3


def test_wrong_names_and_weights_are_refused_in_words(tmp_path: Any) -> None:
    with pytest.raises(BadInput, match="no policy 'fast'"):
        chooser("fast")
    bad = tmp_path / "w.npy"
    np.save(bad, np.zeros(7, np.float32))
    with pytest.raises(WeightsError, match="holds 7 numbers"):
        read_weights(bad)
    bad.write_bytes(os.urandom(64))
    with pytest.raises(WeightsError, match="cannot be read"):
        read_weights(bad)
    assert not packaged_weights().flags.writeable


def test_last_value_forecasts_the_newest_of_each_queue() -> None:
    acks = np.zeros(3, LOG)
    acks["t_send"] = [0, MS, 30 * MS]
    acks["t_ack"] = [10 * MS, 15 * MS, 46 * MS]
    acks["sent_ecn"] = [ECT1, ECT0, ECT1]
    naive = LastValue()
    naive.hear(acks)
    low, classic = naive.ask(50 * MS, 0)
    assert (low.median / MS, classic.median / MS) == (6.0, 4.0)
