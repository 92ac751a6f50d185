"""The world: time, links, senders, books, copies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdn.errors import BadConfig, BadInput
from kdn.net.world import (
    ECT0,
    ECT1,
    ChooserQuestion,
    Flow,
    Hop,
    Queue,
    RateTrace,
    Scenario,
    World,
    bulk,
    constant,
    frames,
    read_link,
    read_mahimahi,
    read_throughput,
    steady,
    web,
)
from kdn.net.world.build import build
from kdn.net.world.control import on_acked, on_marked
from kdn.net.world.events import pop, push
from kdn.net.world.records import MS, SECOND
from kdn.net.world.world import ChooserAnswer


def one_flow(control: str = "cubic", mbps: float = 12.0, **flow: float) -> Scenario:
    own = Flow(control, "ect0", logged=True, **flow)  # type: ignore[arg-type]
    return Scenario("one", (Hop(constant(mbps * 1e6)),), (own,), seconds=5.0)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60))
def test_events_come_by_time_and_then_by_age(times: list[int]) -> None:
    state = build(one_flow())
    state.clock["num_events"] = 0
    for i, t in enumerate(times):
        push(state, t, 0, i)
    seen = [pop(state) for _ in times]
    assert [(t, arg) for t, _, arg in seen] == sorted((t, i) for i, t in enumerate(times))


def test_a_packet_takes_serialisation_and_delays_and_no_more() -> None:
    app = steady(1.2)  # 1500 bytes every 10 ms
    flow = Flow("unresponsive", "ect1", app, in_ms=3.0, out_ms=2.0, back_ms=7.0, logged=True)
    world = World(Scenario("lone", (Hop(constant(12e6), delay_ms=4.0),), (flow,), seconds=0.5))
    world.run()
    log = world.log()
    assert set(log["t_deliver"] - log["t_send"]) == {(3 + 1 + 4 + 2) * MS}  # 1 ms on the link
    assert set(log["t_ack"] - log["t_deliver"]) == {7 * MS}
    assert set(np.diff(log["t_send"])) == {10 * MS}


def test_a_slow_second_hop_is_the_bottleneck() -> None:
    hops = (Hop(constant(100e6)), Hop(constant(10e6)))
    world = World(Scenario("chain", hops, (Flow("cubic", "ect0", in_ms=5.0),), seconds=8.0))
    world.run()
    world.check()
    assert 9.0 < world.totals(0).goodput_mbps <= 10.0


def test_a_link_follows_its_trace_and_repeats_it() -> None:
    trace = RateTrace(np.array([0, SECOND]), np.array([10e6, 2e6]), 2 * SECOND)
    flow = Flow("unresponsive", "ect1", steady(30.0), logged=True)
    world = World(Scenario("steps", (Hop(trace, Queue("droptail")),), (flow,), seconds=6.0))
    world.run()
    log = world.log()
    second = log["t_deliver"] // SECOND
    mbit = [float(log["size"][second == i].sum()) * 8e-6 for i in range(2, 6)]
    assert mbit == pytest.approx([10, 2, 10, 2], rel=0.05)


def test_opportunities_carry_a_packet_each() -> None:
    trace = RateTrace(np.arange(0, 100, 5) * MS, np.zeros(20), 100 * MS, opportunities=True)
    flow = Flow("unresponsive", "ect1", steady(30.0), logged=True)
    world = World(Scenario("chances", (Hop(trace, Queue("droptail")),), (flow,), seconds=2.0))
    world.run()
    assert set(np.diff(world.log()["t_deliver"])) == {5 * MS}


def test_opportunities_of_one_moment_carry_a_packet_each() -> None:
    """Three packets every 6 ms, as recorded cellular links have them: 6 Mbit/s."""
    times = np.repeat(np.arange(0, 96, 6), 3) * MS
    trace = RateTrace(times, np.zeros(len(times)), 96 * MS, opportunities=True)
    flow = Flow("unresponsive", "ect1", steady(30.0), logged=True)
    world = World(Scenario("bundles", (Hop(trace, Queue("droptail")),), (flow,), seconds=2.0))
    world.run()
    moments, counts = np.unique(world.log()["t_deliver"], return_counts=True)
    assert set(counts[1:-1]) == {3}
    assert set(np.diff(moments)) == {6 * MS}


def test_loss_is_found_by_time_and_counted_once() -> None:
    flow = Flow("reno", "ect0", in_ms=10.0)
    hop = Hop(constant(20e6), loss=0.01)
    world = World(Scenario("lossy", (hop,), (flow,), seconds=20.0))
    world.run()
    world.check()
    lost_by_link = int(world.state.hops[0]["lost"])
    assert world.totals(0).spurious == 0
    assert abs(world.totals(0).lost - lost_by_link) < 30


def test_jitter_delays_but_keeps_order() -> None:
    flow = Flow("cubic", "ect0", in_ms=5.0, logged=True)
    world = World(Scenario("jitter", (Hop(constant(20e6), jitter_ms=3.0),), (flow,), seconds=5.0))
    world.run()
    assert world.totals(0).late == 0
    assert np.all(np.diff(world.log()["t_deliver"]) >= 0)


@pytest.mark.parametrize("control", ["reno", "cubic", "dctcp", "prague", "bbr"])
def test_every_control_fills_an_idle_link(control: str) -> None:
    ecn = "ect1" if control in {"dctcp", "prague"} else "ect0"
    flow = Flow(control, ecn, in_ms=10.0)  # type: ignore[arg-type]
    world = World(Scenario("idle", (Hop(constant(20e6)),), (flow,), seconds=15.0))
    world.run()
    world.check()
    assert world.totals(0).goodput_mbps > 16.0


def test_fq_codel_shares_between_the_meek_and_the_greedy() -> None:
    flows = (
        Flow("unresponsive", "not-ect", steady(60.0)),
        Flow("cubic", "not-ect", in_ms=10.0),
        Flow("unresponsive", "not-ect", steady(1.0), logged=True),
    )
    world = World(Scenario("fq", (Hop(constant(20e6), Queue("fq_codel")),), flows, seconds=10.0))
    world.run()
    world.check()
    assert world.totals(0).goodput_mbps == pytest.approx(9.5, rel=0.15)
    log = world.log()
    assert float(np.percentile(log["t_deliver"] - log["t_send"], 99)) < 4 * MS


def test_equal_seeds_give_equal_worlds_and_others_do_not() -> None:
    def run(seed: int) -> list[int]:
        flows = (Flow("cubic", "ect0", web(5.0, 50e3), in_ms=5.0, logged=True),)
        world = World(Scenario("web", (Hop(constant(20e6)),), flows, 3.0, seed))
        world.run()
        return [int(t) for t in world.log()["t_ack"]]

    assert run(1) == run(1)
    assert run(1) != run(2)


@settings(max_examples=6)
@given(st.integers(1, 40), st.sampled_from(["droptail", "fq_codel", "dualpi2"]), st.integers(0, 99))
def test_a_clone_lives_the_same_life(tenths: int, aqm: str, seed: int) -> None:
    flows = (
        Flow("prague", "ect1", in_ms=5.0, logged=True),
        Flow("cubic", "not-ect", web(8.0, 40e3), in_ms=9.0, logged=True),
        Flow("unresponsive", "ect1", frames(5.0), logged=True),
    )
    hop = Hop(constant(20e6), Queue(aqm), jitter_ms=0.5, loss=0.001)
    world = World(Scenario("twins", (hop,), flows, 6.0, seed))
    world.run(tenths / 10)
    world.check()
    twin = world.clone()
    world.run(6.0)
    assert twin.now_ns == tenths * SECOND // 10
    twin.run(6.0)
    assert np.array_equal(world.log(), twin.log())


class _Curious:
    """Compares what a copy foretells for the low queue with what happens, changing nothing."""

    def __init__(self) -> None:
        self.foretold: list[float | None] = []

    def choose(self, question: ChooserQuestion) -> ChooserAnswer:
        assert question.world is not None
        low, classic = question.world.delay_of_each()
        self.foretold.append(low if question.mark == ECT1 else classic)
        return ChooserAnswer(question.mark)


def test_what_a_copy_foretells_happens() -> None:
    """With nobody else deciding, the counterfactual of the choice made is the fact."""
    own = Flow("prague", "ect1", steady(2.0), marking="ask", in_ms=5.0)
    others = (Flow("unresponsive", "ect1", frames(10.0)), Flow("cubic", "ect0", in_ms=5.0))
    curious = _Curious()
    world = World(Scenario("ask", (Hop(constant(20e6)),), (own, *others), 2.0), {0: curious})
    world.run()
    log = world.log()
    happened: list[float | None] = [None] * (
        int(log["seq"].max()) + 1
    )  # None for a packet that is lost
    for row in log:
        happened[row["seq"]] = float(row["t_deliver"] - row["t_send"]) / SECOND
    assert happened.count(None) == world.totals(0).lost == 2
    assert curious.foretold[: len(happened)] == pytest.approx(happened, abs=1e-12)


class _Alternate:
    def choose(self, question: ChooserQuestion) -> ChooserAnswer:
        return ChooserAnswer(ECT0 if question.mark == ECT1 else ECT1)


def test_asking_happens_at_most_once_a_millisecond_and_costs_time() -> None:
    own = Flow("prague", "ect1", bulk(), marking="ask", in_ms=5.0, decision_cost_us=50.0)
    world = World(Scenario("often", (Hop(constant(50e6)),), (own,), 2.0), {0: _Alternate()})
    world.run()
    assert world.num_questions <= 2001
    log = world.log()
    waited = log["t_send"] - log["t_ready"]
    assert set(waited[waited > 0]) <= set(range(1, 50_001))
    assert world.totals(0).switches == world.num_questions
    world.check()


def test_a_scenario_without_flows_is_refused() -> None:
    with pytest.raises(BadConfig, match="at least one hop and one flow"):
        World(Scenario("empty", (Hop(constant(1e6)),), ()))


def test_traces_are_read_and_refused_in_words(tmp_path: Path) -> None:
    good = tmp_path / "good.txt"
    good.write_text("0 8\n1 16\n2 4\n")
    assert read_throughput(good).mean_bps == pytest.approx(28e6 / 3)
    chances = tmp_path / "chances.txt"
    chances.write_text("0\n0\n5\n9\n")
    assert read_mahimahi(chances).mean_bps == pytest.approx(4 * 12_000 / 0.010)
    bad = tmp_path / "bad.txt"
    bad.write_text("0 8\none 16\n")
    with pytest.raises(BadInput, match="line 2"):
        read_throughput(bad)
    with pytest.raises(BadInput, match="cannot read"):
        read_mahimahi(tmp_path / "absent.gz")


def test_a_mark_that_opens_a_round_counts_the_bytes_it_came_with() -> None:
    """Two marked packets a round apart: each round is marked whole, and the share stays at 1."""
    state = build(Scenario("one", (Hop(constant(10e6)),), (Flow("prague", "ect1"),)))
    flow = state.flows[0]
    flow["srtt"], flow["ssthresh"] = 30.0 * MS, 1.0
    for now in (SECOND, 2 * SECOND):
        on_marked(flow, ECT1, 1500, now - 30 * MS, now)
        on_acked(flow, 1500, 0, 30.0 * MS, 0.0, 0, now)
    assert float(flow["mark_share"]) == 1.0
    assert np.isfinite(float(flow["cwnd"]))


def test_a_recorded_link_of_either_kind_is_told_by_its_columns(tmp_path: Path) -> None:
    chances, rates = tmp_path / "chances.txt", tmp_path / "rates.txt"
    chances.write_text("0\n4\n9\n")
    rates.write_text("0 8\n1 16\n")
    assert read_link(chances).opportunities
    assert read_link(rates, scale=0.5).mean_bps == pytest.approx(6e6)
    with pytest.raises(BadInput, match="no rate to scale"):
        read_link(chances, scale=2.0)
