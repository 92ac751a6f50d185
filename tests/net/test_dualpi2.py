"""DualPI2 against the RFC's arithmetic, worked by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kdn.net.world import Flow, Hop, Queue, Scenario, World, constant
from kdn.net.world.bare import admit, next_to_forward
from kdn.net.world.build import empty_hop
from kdn.net.world.queue.dualpi2 import pi_update, ramp
from kdn.net.world.records import CE, ECT0, ECT1, MS, NIL, NOT_ECT, US, State
from kdn.net.world.spec import steady


def router(queue: Queue | None = None, mbps: float = 12.0) -> State:
    return empty_hop(Hop(constant(mbps * 1e6), queue or Queue()), num_packets=4096)


def fill(state: State, count: int, ecn: int, now: int = 0) -> list[int]:
    return [admit(state, 1500, ecn, now) for _ in range(count)]


def test_ramp_rises_between_its_thresholds() -> None:
    marks = [ramp(t * US, 800 * US, 400 * US) for t in (0, 799, 900, 1000, 1200, 5000)]
    assert marks == pytest.approx([0, 0, 0.25, 0.5, 1, 1])


def test_range_zero_is_a_step() -> None:
    assert ramp(999 * US, 1000 * US, 0) == 0.0
    assert ramp(1000 * US, 1000 * US, 0) == 1.0


def test_pi_step_equals_the_rfcs_numbers() -> None:
    state = router()
    fill(state, 1, ECT0)
    state.hops[0]["q_prev"] = 20 * MS
    pi_update(state, 0, 25 * MS)  # the head has waited 25 ms: 0.16 * 0.010 + 3.2 * 0.005
    assert state.hops[0]["p"] == pytest.approx(0.0176)
    assert state.hops[0]["coupling"] * state.hops[0]["p"] == pytest.approx(0.0352)
    assert state.hops[0]["p"] ** 2 == pytest.approx(0.00031, rel=0.01)


def test_pi_takes_the_longer_sojourn_and_never_goes_below_zero() -> None:
    state = router()
    fill(state, 1, ECT0, now=5 * MS)
    fill(state, 1, ECT1, now=0)
    pi_update(state, 0, 20 * MS)
    assert state.hops[0]["q_prev"] == 20 * MS
    empty = router()
    pi_update(empty, 0, 16 * MS)
    assert empty.hops[0]["p"] == 0.0


def test_the_last_ecn_bit_chooses_the_queue() -> None:
    state = router()
    for ecn in (NOT_ECT, ECT1, ECT0, CE):
        admit(state, 1500, ecn, 0)
    assert (state.hops[0]["len_c"], state.hops[0]["len_l"]) == (2, 2)


def drain(state: State, now: int = 0) -> list[Any]:
    seen = []
    while (packet := next_to_forward(state, now)) != NIL:
        seen.append(int(state.packets[packet]["ecn"]))
    return seen


def test_a_sixteenth_means_fifteen_packets_then_one() -> None:
    state = router()
    fill(state, 60, ECT1)
    fill(state, 3, NOT_ECT)
    served = drain(state)
    classic = [i for i, ecn in enumerate(served) if ecn == NOT_ECT]
    assert np.diff(classic).tolist() == [16, 16]


def test_time_shifted_fifo_lets_classic_go_first_after_the_shift() -> None:
    state = router(Queue(scheduler="ts-fifo", shift_ms=50.0))
    fill(state, 1, NOT_ECT, now=0)
    fill(state, 1, ECT1, now=49 * MS)
    assert drain(state, 49 * MS)[0] in (ECT1, CE)
    fill(state, 1, NOT_ECT, now=0)
    fill(state, 1, ECT1, now=51 * MS)
    assert drain(state, 51 * MS)[0] == NOT_ECT


def test_marks_are_regular_not_random() -> None:
    state = router()
    state.hops[0]["p"] = 0.125  # coupled: every fourth L packet
    marked = []
    for _ in range(16):
        fill(state, 1, ECT1)
        marked += drain(state)
    assert marked.count(CE) == 3  # the accumulator must pass 1, so the first comes after four
    assert np.diff([i for i, ecn in enumerate(marked) if ecn == CE]).tolist() == [4, 4]


def test_classic_packets_are_marked_or_dropped_by_their_kind() -> None:
    state = router()
    state.hops[0]["p"] = 0.4  # squared: 0.16, below the overload's 0.25
    fill(state, 100, ECT0)
    assert drain(state).count(CE) == 16
    fill(state, 100, NOT_ECT)
    assert len(drain(state)) == 84


def test_overload_drops_even_what_could_be_marked() -> None:
    state = router()
    state.hops[0]["p"] = 0.6  # p_CL = 1.2, p_C = 0.36
    fill(state, 100, ECT0)
    assert len(drain(state)) == 64
    fill(state, 100, ECT1)
    served = drain(state)
    assert len(served) == 64
    assert served.count(CE) == 64


def test_overload_leaves_no_marks_behind() -> None:
    """p_CL = 1.8 for a thousand packets, of which 81 % are dropped and all others marked; then p' = 0."""
    state = router()
    state.hops[0]["p"] = 0.9
    served = []
    for _ in range(10):
        fill(state, 100, ECT1)
        served += drain(state)
    assert len(served) in {190, 191}
    assert set(served) == {CE}
    state.hops[0]["p"] = 0.0
    fill(state, 100, ECT1)
    assert drain(state) == [ECT1] * 100


def test_a_full_buffer_refuses_and_counts() -> None:
    state = router(Queue(limit_ms=10.0), mbps=12.0)  # 15,000 bytes: ten packets
    rows = fill(state, 12, ECT1)
    assert [row == NIL for row in rows] == [False] * 10 + [True] * 2
    assert state.hops[0]["overflowed"] == 2


def test_linux_marks_by_a_step_set_on_joining() -> None:
    state = router(Queue.kernel())
    fill(state, 3, ECT1)
    assert drain(state, 1 * MS) == [ECT1] * 3  # the comparison is strict
    fill(state, 3, ECT1)
    assert drain(state, 1 * MS + 1) == [CE] * 3


def test_linux_gives_classic_a_tenth_by_credit() -> None:
    state = router(Queue.kernel())
    fill(state, 60, ECT1)
    fill(state, 4, NOT_ECT)
    served = drain(state)
    assert np.diff([i for i, ecn in enumerate(served) if ecn == NOT_ECT]).tolist() == [10, 10, 10]


@pytest.mark.parametrize(("rtt_ms", "tolerance"), [(20.0, 0.35), (40.0, 0.8)])
def test_rates_balance_as_the_rfc_foretells(rtt_ms: float, tolerance: float) -> None:
    """Its C.2: r_L / r_C = R_C / (1.22 R_L) with k = 2 for Reno against DCTCP.

    A law of averages: on the longer path Reno's saw-tooth leaves the queue empty now and then.
    """
    flows = (
        Flow("dctcp", "ect1", in_ms=rtt_ms / 2),
        Flow("dctcp", "ect1", in_ms=rtt_ms / 2),
        Flow("reno", "ect0", in_ms=rtt_ms / 2),
        Flow("reno", "ect0", in_ms=rtt_ms / 2),
    )
    world = World(Scenario("balance", (Hop(constant(40e6)),), flows, seconds=30.0))
    world.run()
    scalable, classic = (
        sum(world.totals(i).goodput_mbps for i in pair) for pair in ((0, 1), (2, 3))
    )
    own_rtt = [float(world.state.flows[i]["srtt"]) for i in (0, 2)]
    foretold = own_rtt[1] / (1.22 * own_rtt[0])
    assert scalable / classic == pytest.approx(foretold, rel=tolerance)


def test_overload_by_unresponsive_traffic_does_not_stop_classic() -> None:
    """It is dropped hard, as the squared coupling wants, but its queue is served."""
    flows = (
        Flow("unresponsive", "ect1", steady(30.0), in_ms=5.0),
        Flow("cubic", "not-ect", in_ms=5.0),
    )
    world = World(Scenario("flood", (Hop(constant(20e6)),), flows, seconds=10.0))
    world.run()
    world.check()
    assert world.totals(1).goodput_mbps > 0.1
    assert world.totals(0).lost > 1000
