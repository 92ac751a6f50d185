"""Congestion rules against the numbers of their RFCs and drafts, worked by hand.

Windows are counted in packets of 1500 bytes; `P` is one of them.
"""

from __future__ import annotations

from typing import Any

import pytest

from kdn.errors import BadConfig
from kdn.net.world import ECT0, ECT1, Flow, Hop, Queue, Scenario, World, constant
from kdn.net.world.bare import book_packet
from kdn.net.world.build import build
from kdn.net.world.control import RULES, on_acked, on_lost, on_marked, on_timeout, pacing_rate
from kdn.net.world.records import MS, SECOND
from kdn.net.world.sender import give_up_all

P = 1500


def sender(rule: str, packets: float, slow_start: bool = False, srtt_ms: float = 100.0) -> Any:
    """The row of a flow with a window of `packets`, past slow start by default."""
    ecn = "ect1" if rule in {"dctcp", "prague"} else "ect0"
    flow = Flow(rule, ecn)  # type: ignore[arg-type]
    row = build(Scenario("one", (Hop(constant(1e9)),), (flow,))).flows[0]
    row["cwnd"], row["srtt"] = packets * P, srtt_ms * MS
    if not slow_start:
        row["ssthresh"] = packets * P
    return row


def ack(row: Any, now: int, grown: int = P) -> None:
    on_acked(row, P, grown, float(row["srtt"]), 0.0, 0, now)


def packets(row: Any) -> float:
    return float(row["cwnd"]) / P


# Reno, RFC 5681


def test_reno_doubles_in_slow_start_and_adds_a_packet_a_round_after_it() -> None:
    row = sender("reno", 10, slow_start=True)
    for _ in range(10):
        ack(row, SECOND)
    assert packets(row) == 20
    row = sender("reno", 10)
    for _ in range(10):
        ack(row, SECOND)
    assert packets(row) == pytest.approx(11, abs=0.05)  # each ACK adds 1 / window: a little under


def test_reno_halves_once_for_all_that_was_sent_before() -> None:
    row = sender("reno", 20)
    on_lost(row, 1 * MS, 100 * MS)
    assert packets(row) == 10
    on_lost(row, 99 * MS, 101 * MS)  # sent before the response: covered by it
    assert packets(row) == 10
    on_lost(row, 100 * MS, 200 * MS)
    assert packets(row) == 5
    on_marked(row, ECT0, P, 250 * MS, 300 * MS)  # RFC 3168: a mark counts as a loss
    assert packets(row) == 2.5


def test_no_response_goes_below_two_packets() -> None:
    for rule in ("reno", "cubic", "dctcp", "prague"):
        row = sender(rule, 2.5)
        on_lost(row, 0, SECOND)
        assert packets(row) == 2, rule


TIMEOUTS = [("reno", 20), ("cubic", 28), ("dctcp", 20), ("prague", 20), ("bbr", 20)]


@pytest.mark.parametrize(("rule", "threshold"), TIMEOUTS)
def test_a_timeout_lowers_the_threshold_and_begins_with_two_packets(
    rule: str, threshold: int
) -> None:
    """To half the window; CUBIC's to 0.7 of it (RFC 9438, 4.8)."""
    row = sender(rule, 40)
    on_timeout(row, SECOND)
    assert packets(row) == 2
    assert float(row["ssthresh"]) / P == pytest.approx(threshold)


@pytest.mark.parametrize(("rule", "threshold"), TIMEOUTS[:4])
def test_a_timeout_is_one_response_for_all_that_was_in_flight(rule: str, threshold: int) -> None:
    """RFC 5681, 3.1: the window before it counts, and a second timeout in a row keeps the threshold."""
    flow = Flow(rule, "ect1" if rule in {"dctcp", "prague"} else "ect0")
    state = build(Scenario("one", (Hop(constant(1e9)),), (flow,)))
    row = state.flows[0]
    row["cwnd"] = 40 * P
    for _ in range(30):
        book_packet(state, 0, MS)
    for now in (SECOND, 3 * SECOND):
        give_up_all(state, 0, now)
        assert packets(row) == 2
        assert float(row["ssthresh"]) / P == pytest.approx(threshold)
        book_packet(state, 0, now + MS)
    assert int(row["lost"]) == 31


# CUBIC, RFC 9438


def test_cubic_multiplies_by_seven_tenths_and_comes_back_after_k() -> None:
    """W_max = 100, cwnd 70: K = cbrt(30 / 0.4) = 4.217 s, and the cubic is back at 100 then."""
    row = sender("cubic", 100)
    on_lost(row, 0, SECOND)
    assert packets(row) == pytest.approx(70)
    ack(row, SECOND)
    assert float(row["k_cubic"]) == pytest.approx(4.217, abs=1e-3)
    # One round trip (0.1 s) ahead: 0.4 * (0.1 - 4.217)^3 + 100 = 72.08; an ACK takes 1/70 of the way.
    assert packets(row) == pytest.approx(70 + 2.08 / 70, abs=1e-3)
    row["cwnd"] = 99 * P
    ack(row, SECOND + int(4.117 * SECOND))  # the target one round ahead is W_max itself
    assert packets(row) == pytest.approx(99 + 1 / 99, abs=1e-3)


def test_cubic_lets_go_faster_when_its_peak_falls() -> None:
    """Fast convergence (4.7): at 80 below a peak of 100 the new peak is 80 * 0.85 = 68."""
    row = sender("cubic", 100)
    on_lost(row, 0, SECOND)
    row["cwnd"] = 80 * P
    on_lost(row, 2 * SECOND, 3 * SECOND)
    assert float(row["w_max"]) / P == pytest.approx(68)
    assert packets(row) == pytest.approx(56)


def test_cubic_is_never_below_what_reno_would_have() -> None:
    """4.3: 3 * 0.3 / 1.7 = 0.529 packets a round, and a whole one from the old peak on; the cubic is flat.

    An ACK adds 0.529 / w, so that w^2 grows by 1.059: forty of them lead from 7 to sqrt(91.4).
    """
    row = sender("cubic", 10, srtt_ms=1.0)
    on_lost(row, 0, SECOND)  # peak 10, window 7, K = cbrt(3 / 0.4) = 1.957 s
    for i in range(40):  # some five rounds of 1 ms: the cubic has hardly begun to move
        ack(row, SECOND + i * MS // 7)
    assert packets(row) == pytest.approx(float(row["w_reno"]) / P)
    assert packets(row) == pytest.approx(9.56, abs=0.05)
    row["cwnd"] = row["w_reno"] = 10.01 * P
    for i in range(10):
        ack(row, SECOND + 6 * MS + i * MS // 10)
    assert packets(row) == pytest.approx(11, abs=0.05)


def test_what_reno_would_have_grows_by_acks_over_the_window_that_is() -> None:
    """4.3: a round of a window of 100 adds 0.529 to an estimate of 50, not twice that."""
    row = sender("cubic", 100)
    row["epoch"], row["w_max"], row["w_reno"] = SECOND, 100 * P, 50 * P
    for _ in range(100):
        ack(row, SECOND)
    assert float(row["w_reno"]) / P == pytest.approx(50.529, abs=0.001)


def test_cubic_grows_by_at_most_half_a_window_a_round() -> None:
    """4.4: the target is at most 1.5 windows, however long the flow has waited."""
    row = sender("cubic", 20)
    ack(row, SECOND)
    before = packets(row)
    ack(row, 100 * SECOND)
    assert packets(row) - before == pytest.approx(0.5, abs=0.01)


# DCTCP, RFC 8257


def test_dctcp_moves_its_share_by_a_sixteenth_a_round() -> None:
    """Starts at 1; a round with a quarter of its bytes marked: 1 - 0.75 / 16 = 0.953."""
    row = sender("dctcp", 100)
    row["round_end"] = 10 * SECOND
    row["reduced"] = 9 * SECOND  # no cut in between
    for i in range(4):
        if i == 0:
            on_marked(row, ECT1, P, 9 * SECOND, 9 * SECOND)
        ack(row, 9 * SECOND if i < 3 else 10 * SECOND)
    assert float(row["mark_share"]) == pytest.approx(1 - 0.75 / 16)


def test_dctcp_cuts_by_half_its_share_once_a_round() -> None:
    row = sender("dctcp", 100)
    row["mark_share"] = 0.5
    on_marked(row, ECT1, P, 0, SECOND)
    assert packets(row) == pytest.approx(75)
    on_marked(row, ECT1, P, 0, SECOND + 99 * MS)
    assert packets(row) == pytest.approx(75)
    on_marked(row, ECT1, P, 0, SECOND + 100 * MS)
    assert packets(row) == pytest.approx(75 * 0.75)


@pytest.mark.parametrize("rule", ["dctcp", "prague"])
def test_a_mark_on_a_classic_packet_gets_the_classic_response(rule: str) -> None:
    """RFC 9331, 4.3: the response belongs to the packet's class, not to the flow's."""
    row = sender(rule, 100)
    row["mark_share"] = 0.02
    on_marked(row, ECT0, P, SECOND, 2 * SECOND)
    assert packets(row) == 50


# Prague


def test_prague_grows_on_a_short_path_as_on_one_of_25_ms() -> None:
    """5 ms: (5 / 25)^2 = 0.04 of a packet a window; from 25 ms on it is Reno's packet."""
    for srtt_ms, share in ((5.0, 0.04), (25.0, 1.0), (80.0, 1.0)):
        row = sender("prague", 10, srtt_ms=srtt_ms)
        ack(row, SECOND)
        assert packets(row) - 10 == pytest.approx(share / 10)


def test_prague_cuts_once_per_virtual_round_and_keeps_on_marks() -> None:
    row = sender("prague", 40, srtt_ms=5.0)
    row["mark_share"] = 0.5
    on_marked(row, ECT1, P, 0, SECOND)
    on_marked(row, ECT1, P, 0, SECOND + 24 * MS)
    assert packets(row) == pytest.approx(30)
    on_marked(row, ECT1, P, 0, SECOND + 25 * MS)
    assert packets(row) == pytest.approx(22.5)
    prague = next(rule for rule in RULES if rule.name == "prague")
    assert not prague.grows_on_marks


def test_prague_paces_at_its_window_a_round_trip() -> None:
    row = sender("prague", 20, srtt_ms=10.0)
    assert pacing_rate(row) == pytest.approx(1.03 * 20 * P / (10 * MS))
    row = sender("prague", 20, slow_start=True, srtt_ms=10.0)
    assert pacing_rate(row) == pytest.approx(2 * 20 * P / (10 * MS))


# BBR, draft version 1


def bbr_round(row: Any, rate: float, now: int, rtt_ms: float = 20.0) -> None:
    """One round trip with that delivery rate (bytes/ns)."""
    row["delivered"] += 10 * P
    on_acked(row, P, P, rtt_ms * MS, rate, int(row["round_delivered"]), now)


def test_bbr_leaves_start_up_after_three_rounds_without_a_quarter_more() -> None:
    row = sender("bbr", 10, slow_start=True)
    rates = [0.001, 0.002, 0.004, 0.0045, 0.0045, 0.0045]  # the last three grow by less than 25 %
    for i, rate in enumerate(rates):
        assert int(row["mode"]) == 0, f"round {i}"
        row["inflight"] = 10**9  # more than the path holds: drain goes on
        bbr_round(row, rate, SECOND + i * 20 * MS)
    bbr_round(row, 0.0045, SECOND + 7 * 20 * MS)
    assert int(row["mode"]) == 1
    assert pacing_rate(row) == pytest.approx(0.0045 / 2.885)


def test_bbr_cruises_in_cycles_of_eight_around_its_bandwidth() -> None:
    row = sender("bbr", 10)
    row["mode"], row["cycle"], row["bw_now"], row["min_rtt"] = 2, 2, 0.002, 20.0 * MS
    row["min_rtt_t"] = SECOND
    gains = []
    for i in range(8):
        bbr_round(row, 0.002, SECOND + (i + 1) * 21 * MS)
        gains.append(pacing_rate(row) / 0.002)
    assert gains == pytest.approx([1, 1, 1, 1, 1, 1.25, 0.75, 1])
    assert float(row["cwnd"]) == pytest.approx(2 * 0.002 * 20 * MS)


def test_bbr_looks_at_the_empty_path_with_four_packets_for_200_ms() -> None:
    row = sender("bbr", 100)
    row["mode"], row["bw_now"], row["min_rtt"], row["min_rtt_t"] = 2, 0.002, 20.0 * MS, SECOND
    now = 12 * SECOND  # the least round trip is older than ten seconds
    bbr_round(row, 0.002, now, rtt_ms=30.0)
    assert packets(row) == 4
    bbr_round(row, 0.002, now + 199 * MS, rtt_ms=30.0)
    assert packets(row) == 4
    bbr_round(row, 0.002, now + 201 * MS, rtt_ms=30.0)
    assert packets(row) > 4
    assert float(row["min_rtt"]) == 30.0 * MS


@pytest.mark.parametrize("event", ["lost", "marked"])
def test_bbr_and_the_unresponsive_ignore_losses_and_marks(event: str) -> None:
    for rule in ("bbr", "unresponsive"):
        row = sender(rule, 50)
        if event == "lost":
            on_lost(row, SECOND, 2 * SECOND)
        else:
            on_marked(row, ECT1, P, SECOND, 2 * SECOND)
        assert packets(row) == 50


# in a world


def test_two_reno_flows_of_one_path_share_alike() -> None:
    flows = (Flow("reno", "not-ect", in_ms=10.0), Flow("reno", "not-ect", in_ms=10.0, start_s=1.0))
    hop = Hop(constant(20e6), Queue("droptail", limit_ms=40.0))
    world = World(Scenario("pair", (hop,), flows, seconds=40.0))
    world.run()
    rates = [world.totals(i).goodput_mbps for i in range(2)]
    assert sum(rates) > 17.0
    assert max(rates) / min(rates) < 1.8


def test_renos_rate_follows_the_square_root_of_its_loss() -> None:
    """Mathis: 1.22 / sqrt(p) packets a round trip; p = 1 %, 100 ms: 12.2 packets, 1.46 Mbit/s."""
    hop = Hop(constant(100e6), Queue("droptail"), loss=0.01)
    flow = Flow("reno", "not-ect", in_ms=50.0)
    world = World(Scenario("mathis", (hop,), (flow,), seconds=200.0))
    world.run()
    assert world.totals(0).goodput_mbps == pytest.approx(1.46, rel=0.25)


def test_an_unknown_rule_or_queue_is_one_sentence() -> None:
    with pytest.raises(BadConfig, match=r"no congestion rule 'vegas'; there are reno, cubic"):
        World(Scenario("x", (Hop(constant(1e6)),), (Flow("vegas", "ect0"),)))
    with pytest.raises(BadConfig, match=r"no queue 'red'; there are droptail"):
        World(Scenario("x", (Hop(constant(1e6), Queue("red")),), (Flow("reno", "ect0"),)))
