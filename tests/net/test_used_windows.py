"""Windows grow only where they were used (RFC 9438, 5.8), by hand, and bulk flows are as before the rule.

Windows are counted in packets of 1500 bytes; `P` is one of them.
"""

from __future__ import annotations

import pytest

from kdn.net.world import Flow, Hop, Queue, Scenario, World, bulk, constant, steady
from kdn.net.world.bare import book_packet, packet_acked
from kdn.net.world.build import build
from kdn.net.world.control import on_acked, on_lost
from kdn.net.world.records import MS, SECOND, State

P = 1500
WINDOWS = ["reno", "cubic", "dctcp", "prague"]


def flow(rule: str, mbps: float | None = None) -> Flow:
    app = bulk() if mbps is None else steady(mbps)
    ecn = "ect1" if rule in {"dctcp", "prague"} else "ect0"
    return Flow(rule, ecn, app, in_ms=10.0, logged=True)  # type: ignore[arg-type]


def burst(state: State, now_s: float, given: int, sent: int | None = None) -> float:
    """The window after packets were given, of which `sent`, or all, were acknowledged 100 ms later."""
    row, now = state.flows[0], int(now_s * SECOND)
    row["app_bytes"] = given * P
    rows = [book_packet(state, 0, now) for _ in range(given if sent is None else sent)]
    for one in rows:
        packet_acked(state, one, False, now + 100 * MS)
    return float(row["cwnd"]) / P


@pytest.mark.parametrize("rule", WINDOWS)
def test_a_flow_of_fixed_rate_keeps_the_window_that_it_began_with(rule: str) -> None:
    """1 Mbit/s is a packet every 12 ms: of a round trip of 20 ms two are in flight, of ten allowed."""
    world = World(Scenario("one", (Hop(constant(100e6)),), (flow(rule, 1.0),), seconds=5.0))
    world.run()
    assert float(world.state.flows[0]["cwnd"]) == 10 * P
    assert world.totals(0).goodput_mbps == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize("rule", WINDOWS)
def test_slow_start_doubles_a_full_window_and_no_other(rule: str) -> None:
    state = build(Scenario("one", (Hop(constant(1e9)),), (flow(rule, 1.0),)))
    state.flows[0]["cwnd"] = 4 * P
    assert burst(state, 1, 4) == 8, "every ACK of a flight that filled the window counts"
    assert burst(state, 2, 7) == 8, "there was room for one more"
    assert int(state.flows[0]["unfilled"]) == 100 * MS, "the flight, and no idle time: nobody asked"
    assert burst(state, 3, 8) == 16
    assert burst(state, 4, 16, sent=5) == 21, "what only pacing held back would have filled it"


def test_cubics_clock_stands_while_the_application_is_the_limit() -> None:
    """RFC 9438, 4.2: W_max 100, window 70, K = 4.217 s. An ACK toward 72.08, and after a minute without
    data another, as if none had passed; it would have grown by half a window a round."""
    row = build(Scenario("one", (Hop(constant(1e9)),), (flow("cubic"),))).flows[0]
    row["cwnd"] = row["ssthresh"] = 100 * P
    row["srtt"] = 100 * MS
    on_lost(row, 0, SECOND)
    for now_s, unused_s in ((1, 0), (61, 60)):
        row["unfilled"] = unused_s * SECOND
        on_acked(row, P, P, 100.0 * MS, 0.0, 0, now_s * SECOND)
    assert float(row["cwnd"]) / P == pytest.approx(70 + 2 * 2.08 / 70, abs=1e-3)


def test_an_idle_minute_stands_still_for_cubic() -> None:
    """On for 0.5 s, off for some seconds: the clock has run while packets were under way at most."""
    app = steady(1.0, on_s=0.5, off_s=5.0)
    own = Flow("cubic", "ect0", app, in_ms=10.0)
    world = World(Scenario("idle", (Hop(constant(100e6)),), (own,), seconds=60.0, seed=2))
    world.run()
    row = world.state.flows[0]
    assert int(row["last_progress"]) - int(row["unfilled"]) == 0, "its window was never used"


BULK = {
    "reno": ((2693, 3, 40), (2250, 7, 27)),
    "cubic": ((2706, 13, 70), (1973, 10, 55)),
    "dctcp": ((2287, 0, 704), (2186, 0, 655)),
    "prague": ((2699, 0, 739), (2068, 0, 654)),
}


@pytest.mark.parametrize("rule", WINDOWS)
def test_a_bulk_flow_is_what_it_was(rule: str) -> None:
    """Packets acknowledged, lost and marked, as recorded before windows knew whether they were used."""
    hop = Hop(constant(10e6), Queue("dualpi2"), loss=0.0005)
    world = World(Scenario("bulk", (hop,), (flow(rule), flow(rule)), seconds=6.0, seed=3))
    world.run()
    for index, expected in enumerate(BULK[rule]):
        totals = world.totals(index)
        assert (totals.acked, totals.lost, totals.ce) == expected
