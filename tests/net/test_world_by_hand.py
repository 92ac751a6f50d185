"""Events, copies, marking and traces of the world by hand, and worlds that are refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdn.errors import BadConfig, BadInput
from kdn.net.world import (
    ECT0,
    ECT1,
    App,
    Chooser,
    ChooserAnswer,
    ChooserQuestion,
    Flow,
    Hop,
    Queue,
    RateTrace,
    Scenario,
    World,
    constant,
    frames,
    read_link,
    read_throughput,
    steady,
    web,
)
from kdn.net.world.build import build
from kdn.net.world.events import SEND, TIMER, pop, push
from kdn.net.world.records import MS, SECOND, blank, copied
from kdn.net.world.rng import uniform


def lone(hop: Hop, flow: Flow, seconds: float = 1.0) -> World:
    world = World(Scenario("lone", (hop,), (flow,), seconds))
    world.run()
    world.check()
    return world


steps = st.lists(st.one_of(st.none(), st.integers(0, 20)), max_size=80)


@settings(max_examples=50)
@given(steps)
def test_events_pushed_between_pops_come_in_order_too(wanted: list[int | None]) -> None:
    """Against a plain list: a number is pushed, None takes the soonest out."""
    state = build(Scenario("x", (Hop(constant(1e6)),), (Flow("cubic", "ect0"),)))
    state.clock["num_events"] = 0
    plain: list[tuple[int, int]] = []
    for age, t in enumerate(wanted):
        if t is not None:
            push(state, t, TIMER, age)
            plain.append((t, age))
        elif plain:
            soonest = min(plain)
            plain.remove(soonest)
            assert pop(state) == (soonest[0], TIMER, soonest[1])
    assert state.clock[0]["num_events"] == len(plain)


def test_a_full_heap_says_so_and_keeps_what_it_has() -> None:
    state = build(Scenario("x", (Hop(constant(1e6)),), (Flow("cubic", "ect0"),)))
    state = state._replace(events=state.events[:3])
    state.clock["num_events"] = 0
    for t in (30, 10, 20):
        push(state, t, SEND, t)
    assert state.clock[0]["full"] == 0
    push(state, 5, SEND, 5)
    assert state.clock[0]["full"] == 1
    assert [pop(state)[0] for _ in range(3)] == [10, 20, 30]


def test_a_copy_shares_nothing_that_changes() -> None:
    state = build(Scenario("x", (Hop(constant(1e6)),), (Flow("cubic", "ect0"),)))
    twin = copied(state)
    drawn = [uniform(state.clock) for _ in range(3)]
    state.flows["cwnd"] = 1.0
    assert twin.flows[0]["cwnd"] == 10 * 1500
    assert [uniform(twin.clock) for _ in range(3)] == drawn
    assert twin.rate is state.rate
    empty = blank(state)
    assert not any(np.any(empty.flows[name]) for name in ("cwnd", "size", "stop"))


def test_random_numbers_are_splitmix64s() -> None:
    """The published first output for seed 0 is 0xe220a8397b1dcdaf; its upper 53 bits over 2^53."""
    state = build(Scenario("x", (Hop(constant(1e6)),), (Flow("cubic", "ect0"),)))
    state.clock["random"] = 0
    assert uniform(state.clock) == (0xE220A8397B1DCDAF >> 11) / 2**53


def test_a_link_waits_through_a_gap_between_opportunities() -> None:
    """Chances at 0 and 1 ms of every 100: two packets at each beat, and none in the 99 ms between."""
    trace = RateTrace(np.array([0, 1]) * MS, np.zeros(2), 100 * MS, opportunities=True)
    flow = Flow("unresponsive", "ect1", steady(12.0), logged=True)
    log = lone(Hop(trace, Queue("droptail")), flow, 2.0).log()
    assert set(log["t_deliver"] % (100 * MS)) == {0, MS}
    assert set(np.diff(log["t_deliver"])) == {MS, 99 * MS}


def test_a_packet_that_a_fall_of_the_rate_meets_takes_the_old_rate() -> None:
    """12 Mbit/s: 1 ms a packet; from 500 ms on 1.2: 10 ms. One every 20 ms, so that none waits."""
    trace = RateTrace(np.array([0, 500]) * MS, np.array([12e6, 1.2e6]), 10 * SECOND)
    flow = Flow("unresponsive", "ect1", steady(0.6), logged=True)
    log = lone(Hop(trace, Queue("droptail")), flow, 1.0).log()
    took = (log["t_deliver"] - log["t_send"]) / MS
    assert took[log["t_send"] < 500 * MS].tolist() == [1.0] * 25
    assert set(took[log["t_send"] >= 500 * MS]) == {10.0}


def test_a_full_buffer_drops_what_it_does_not_hold_and_counts_it() -> None:
    """Bursts of 20 packets at once, of which 5 wait and one is on the link: 14 are refused."""
    hop = Hop(constant(12e6), Queue("droptail", limit_ms=5.0))
    flow = Flow("unresponsive", "ect1", App(30_000, 100.0), logged=True)
    world = lone(hop, flow, 0.95)
    row = world.state.hops[0]
    bursts = world.totals(0).sent / 20
    assert bursts == 10
    assert int(row["overflowed"]) == 14 * bursts
    assert world.totals(0).acked == 6 * bursts


def test_a_flow_sends_between_its_start_and_its_stop() -> None:
    flow = Flow("unresponsive", "ect1", steady(1.2), start_s=0.3, stop_s=0.6, logged=True)
    sent = lone(Hop(constant(12e6)), flow).log()["t_send"]
    assert sent.min() == 300 * MS
    assert 590 * MS <= sent.max() <= 600 * MS


def test_a_flow_leaves_at_its_last_hop() -> None:
    """Three hops of 1, 2 and 4 ms and 1 ms of serialisation each: all three, the first, the last two."""
    hops = tuple(Hop(constant(12e6), delay_ms=ms) for ms in (1.0, 2.0, 4.0))
    paths = ((0, None), (0, 0), (1, 2))
    flows = tuple(
        Flow(
            "unresponsive",
            "ect1",
            steady(0.1),
            start_s=0.01 * i,
            logged=True,
            first_hop=a,
            last_hop=b,
        )
        for i, (a, b) in enumerate(paths)
    )
    world = World(Scenario("paths", hops, flows, 1.0))
    world.run()
    log = world.log()
    took = [set((log["t_deliver"] - log["t_send"])[log["flow"] == i] / MS) for i in range(3)]
    assert took == [{10.0}, {2.0}, {8.0}]


def test_blocks_and_coins_mark_both_queues_and_blocks_switch_less() -> None:
    def run(marking: str) -> World:
        flow = Flow("prague", "ect1", steady(12.0), marking=marking, in_ms=2.0)  # type: ignore[arg-type]
        return lone(Hop(constant(50e6)), flow, 3.0)

    coins, blocks = run("random"), run("blocks")
    for world in (coins, blocks):
        marks = world.log()["sent_ecn"]
        assert set(marks) == {ECT0, ECT1}
        assert 0.3 < (marks == ECT1).mean() < 0.7
    num = coins.totals(0).sent
    assert coins.totals(0).switches == pytest.approx(num / 2, rel=0.1)
    assert blocks.totals(0).switches < num / 16


class _Probing:
    """Stays in the low-latency queue, and sends one packet in the other at every question."""

    def choose(self, question: ChooserQuestion) -> ChooserAnswer:
        return ChooserAnswer(ECT1, probe=True)


def test_a_probe_is_one_packet_and_no_switch() -> None:
    """A packet each millisecond, a question each 10: every tenth packet goes to the classic queue."""
    flow = Flow("unresponsive", "ect1", steady(12.0), marking="ask", decision_gap_ms=10.0)
    choosers: dict[int, Chooser] = {0: _Probing()}
    world = World(Scenario("probes", (Hop(constant(50e6)),), (flow,), 1.0), choosers)
    world.run()
    log = world.log()
    assert int((log["sent_ecn"] == ECT0).sum()) == pytest.approx(len(log) / 10, abs=1)
    assert world.totals(0).switches == 0


@pytest.mark.parametrize(("gap_ms", "cost_us"), [(1.0, 1000.0), (1.0, 2500.0), (0.0, 0.0)])
def test_a_packet_that_asked_is_sent_however_long_the_answer_takes(
    gap_ms: float, cost_us: float
) -> None:
    """A packet each 10 ms, at 10, 20, ... 990: each asks once, and goes when it is answered."""
    flow = Flow(
        "unresponsive",
        "ect1",
        steady(1.2),
        marking="ask",
        start_s=0.01,
        decision_gap_ms=gap_ms,
        decision_cost_us=cost_us,
    )
    world = World(Scenario("slow", (Hop(constant(50e6)),), (flow,), 0.999), {0: _Probing()})
    world.run()
    log = world.log()
    assert len(log) == world.num_questions == 99
    assert set(log["t_send"] - log["t_ready"]) == {cost_us * 1000}


class _Noting:
    """Stays where it is, and keeps how many ACKs each question told of."""

    def __init__(self) -> None:
        self.told = 0

    def choose(self, question: ChooserQuestion) -> ChooserAnswer:
        self.told += len(question.acks)
        return ChooserAnswer(question.mark)


def test_an_ack_that_fills_the_log_and_asks_costs_the_next_no_row() -> None:
    """Two packets leave each 2 ms: of two ACKs of one moment the first fills a log of one row and asks."""
    noting = _Noting()
    pairs = RateTrace(np.repeat(np.arange(0, 100, 2), 2) * MS, np.zeros(100), 100 * MS, True)
    own = Flow("dctcp", "ect1", marking="ask", in_ms=5.0)
    world = World(Scenario("full", (Hop(pairs),), (own,), 1.0), {0: noting})
    world.state = world.state._replace(log=world.state.log[:1])
    world.run()
    assert world.totals(0).acked > 500
    assert len(world.log()) == world.totals(0).acked
    assert noting.told >= world.totals(0).acked - 2


def test_a_copy_tells_each_queues_delay_by_what_stands_in_it() -> None:
    """Twelve classic packets wait at 12 Mbit/s and no other: 1 ms in one queue, several in the other."""
    seen: list[tuple[float | None, float | None]] = []

    class Look:
        def choose(self, question: ChooserQuestion) -> ChooserAnswer:
            assert question.world is not None
            seen.append(question.world.delay_of_each())
            return ChooserAnswer(question.mark)

    own = Flow("unresponsive", "ect1", steady(0.12), marking="ask", start_s=0.0505)
    burst = Flow("unresponsive", "ect0", App(13 * 1500, 1000.0), start_s=0.05)
    world = World(Scenario("burst", (Hop(constant(12e6)),), (own, burst), 0.1), {0: Look()})
    world.run()
    low, classic = seen[0]
    assert low == pytest.approx(0.0015)  # what is left of the packet on the link, and its own
    assert classic == pytest.approx(0.0135)


def trace_file(folder: Path, text: str) -> Path:
    path = folder / "trace.txt"
    path.write_text(text)
    return path


def test_a_recording_with_a_gap_keeps_its_rate_through_the_gap(tmp_path: Path) -> None:
    """8 Mbit/s at 5 s, 4 at 15, 2 at 16: times count from the first; the last lasts the median, 5.5 s."""
    trace = read_throughput(trace_file(tmp_path, "5 8\n\n15 4\n16,2\n"))
    assert (trace.times_ns / SECOND).tolist() == [0, 10, 11]
    assert trace.period_ns == int(16.5 * SECOND)
    assert trace.mean_bps == pytest.approx((80e6 + 4e6 + 11e6) / 16.5)


def test_a_link_that_is_down_has_ten_kilobits(tmp_path: Path) -> None:
    trace = read_throughput(trace_file(tmp_path, "0 0\n1 3\n"), scale=2.0)
    assert trace.bits_per_s.tolist() == [10e3, 6e6]


def test_a_packed_recording_is_read_as_a_plain_one(tmp_path: Path) -> None:
    packed = tmp_path / "chances.gz"
    packed.write_bytes(gzip.compress(b"0\n3\n3\n7\n"))
    assert (read_link(packed).times_ns / MS).tolist() == [0, 3, 3, 7]
    assert read_link(packed).period_ns == 8 * MS


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no line"),
        ("\n \n", "holds no line"),
        ("5\n3\n", "never go back"),
        ("-1\n3\n", "start at 0 or later"),
        ("0 1\n1\n", "line 2: wanted 2 numbers, found 1"),
        ("0 1\n1 inf\n", "line 2: '1 inf' is not a finite number"),
        ("0 1\n0 2\n", "two or more rising times"),
        ("0 1\n", "two or more rising times"),
        ("0 1\n1 -5\n", "no rate below 0 Mbit/s"),
        ("0\n1e300\n", "line 2: '1e300' is too late a time"),
    ],
)
def test_a_recording_that_cannot_be_is_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        read_link(trace_file(tmp_path, text))


def test_a_packed_recording_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.gz"
    path.write_bytes(gzip.compress(b"0 1\n1 2\n" * 50)[:-9])
    with pytest.raises(BadInput, match="cannot read"):
        read_link(path)


def test_applications_give_what_their_words_say() -> None:
    """1.2 Mbit/s: 1,500 bytes each 10 ms; 3 Mbit/s of 30 pictures: 12,500 bytes; 8 of 100 kB: each 100 ms."""
    assert steady(1.2).chunk_bytes == 1500
    assert steady(1.2).interval_ms == pytest.approx(10.0)
    assert frames(3.0).chunk_bytes == pytest.approx(12_500)
    assert web(8.0, 100_000).interval_ms == pytest.approx(100.0)


def test_a_flow_or_application_that_cannot_be_is_refused() -> None:
    for size in (63, 1501):
        with pytest.raises(BadConfig, match=f"64 to 1500 bytes, got {size}"):
            Flow("cubic", "ect0", packet=size)
    for app in ((0.0, 10.0), (1500.0, 0.0)):
        with pytest.raises(BadConfig, match="a size and an interval above zero"):
            App(*app)
