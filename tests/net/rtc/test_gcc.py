"""GCC against numbers worked by hand from its constants (WebRTC as of AlphaRTC)."""

from __future__ import annotations

import numpy as np
import pytest
from tests.net.rtc.table import made_table

from kdn.net.rtc.call import Call, Feedback, Link, run_call
from kdn.net.rtc.control.aimd import AckedBitrate, Aimd, Capacity, LossController, RatePhase
from kdn.net.rtc.control.delay import DelayStep, Detector, InterArrival, LinkUsage, Trendline
from kdn.net.rtc.control.gcc import Gcc
from kdn.net.rtc.control.kalman import ArrivalFilter, PaperDetector
from kdn.net.rtc.rows import ACK, FRAME
from kdn.net.world import RateTrace, constant
from kdn.net.world.records import MS, SECOND


def test_packets_of_five_milliseconds_are_a_group() -> None:
    """Sent at 0, 2, 4 and at 20, 22: the steps are told by the last of each, when a third group begins."""
    groups = InterArrival()
    sent = [(0, 10), (2, 12), (4, 14), (20, 31), (22, 33)]
    assert [groups.add(*pair) for pair in sent] == [None] * 5
    assert groups.add(40, 52) == DelayStep(send_ms=18, arrival_ms=19, at_ms=33)


def test_a_burst_that_caught_up_belongs_to_its_group() -> None:
    """Sent 8 ms later but arrived 1 ms later: it waited with the others."""
    groups = InterArrival()
    groups.add(0, 50)
    groups.add(8, 51)
    groups.add(30, 80)
    assert groups.add(60, 110) == DelayStep(send_ms=22, arrival_ms=29, at_ms=80)


def test_the_trend_is_the_slope_of_the_smoothed_sum() -> None:
    """One ms more each step of 20: smooth(n) = n - 9 + 9 * 0.9^n, against a fit of our own."""
    line = Trendline()
    slopes = [line.add(DelayStep(20.0, 21.0, 21.0 * n)) for n in range(1, 41)]
    assert slopes[:19] == [0.0] * 19
    for last in (20, 40):
        n = np.arange(last - 19, last + 1)
        expected = np.polyfit(21.0 * n, n - 9 + 9 * 0.9**n, 1)[0]
        assert slopes[last - 1] == pytest.approx(expected)
    assert line.modified(0.02) == pytest.approx(40 * 0.02 * 4)
    line.num_steps = 500
    assert line.modified(0.02) == pytest.approx(60 * 0.02 * 4)


def test_overuse_needs_ten_milliseconds_and_a_trend_that_does_not_fall() -> None:
    """Steps of 5 ms above the threshold: 2.5, 7.5, 12.5 ms; the third tells."""
    detector = Detector()
    seen = [detector.add(20.0, 0.1, 5.0, 5.0 * i) for i in range(3)]
    assert seen == [LinkUsage.NORMAL, LinkUsage.NORMAL, LinkUsage.OVER]
    falling = Detector()
    slopes = (0.3, 0.2, 0.1)
    assert [falling.add(20.0, s, 5.0, 5.0 * i) for i, s in enumerate(slopes)][
        -1
    ] is LinkUsage.NORMAL


def test_the_threshold_follows_the_trend() -> None:
    """Up by 0.0087 of the distance per ms, down by 0.039; what is more than 15 away is not followed."""
    detector = Detector()
    detector.add(20.0, 0.1, 5.0, 0.0)
    detector.add(20.0, 0.1, 5.0, 5.0)
    assert detector.threshold == pytest.approx(12.5 + 0.0087 * 7.5 * 5.0)
    detector = Detector()
    detector.add(2.5, 0.0, 5.0, 0.0)
    detector.add(2.5, 0.0, 5.0, 5.0)
    assert detector.threshold == pytest.approx(12.5 - 0.039 * 10.0 * 5.0)
    detector = Detector()
    detector.add(30.0, 0.1, 5.0, 0.0)
    detector.add(30.0, 0.1, 5.0, 5.0)
    assert detector.threshold == 12.5
    for i in range(400):
        detector.add(0.0, 0.0, 5.0, 10.0 + 100.0 * i)
    assert detector.threshold == 6.0


def test_a_falling_trend_is_underuse() -> None:
    assert Detector().add(-20.0, -0.1, 5.0, 0.0) is LinkUsage.UNDER


def test_the_rate_grows_by_eight_per_cent_a_second_up_to_what_arrives() -> None:
    """50 ms of 1.08 a second: x 1.003855; at most 1.5 times what is acknowledged and 10 kbit/s."""
    aimd = Aimd(300e3)
    aimd.update(LinkUsage.NORMAL, 300e3, 100.0, 0.0)
    before = aimd.bps
    aimd.update(LinkUsage.NORMAL, 300e3, 100.0, 50.0)
    assert aimd.bps == pytest.approx(before * 1.08**0.05)
    aimd.update(LinkUsage.NORMAL, 150e3, 100.0, 100.0)
    assert aimd.bps == pytest.approx(before * 1.08**0.05)  # above 1.5 * 150 + 10 already


def test_overuse_cuts_to_85_per_cent_of_what_arrives_and_holds() -> None:
    aimd = Aimd(300e3)
    aimd.update(LinkUsage.OVER, 200e3, 100.0, 1000.0)
    assert aimd.bps == pytest.approx(170e3)
    assert aimd.phase is RatePhase.HOLD
    aimd.update(LinkUsage.OVER, 190e3, 100.0, 1050.0)  # sooner than a round trip
    assert aimd.bps == pytest.approx(170e3)
    aimd.update(LinkUsage.OVER, 80e3, 100.0, 1060.0)  # but half the rate is gone
    assert aimd.bps == pytest.approx(68e3)


def test_near_the_known_capacity_growth_is_additive() -> None:
    """170 kbit/s: 5,667 bits a picture in one packet; half of it per 200 ms: 14.2 kbit/s each second."""
    aimd = Aimd(300e3)
    aimd.update(LinkUsage.OVER, 200e3, 100.0, 1000.0)
    assert aimd.gain_per_s(100.0) == pytest.approx(170e3 / 30 / 0.4)
    aimd.update(LinkUsage.NORMAL, 200e3, 100.0, 1050.0)
    assert aimd.bps == pytest.approx(170e3 + 170e3 / 30 / 0.4 * 0.05)


def test_capacity_is_three_deviations_wide() -> None:
    """1,000 kbit/s, variance 0.4 of it: 3 * sqrt(400) = 60."""
    capacity = Capacity()
    capacity.note(1e6)
    assert capacity.bounds_bps() == pytest.approx((940e3, 1060e3))
    capacity.note(2e6)
    assert capacity.kbps == pytest.approx(1050)
    assert capacity.var == 2.5


def test_loss_below_two_per_cent_raises_above_ten_lowers() -> None:
    loss = LossController(500e3)
    assert loss.update(10, 0, 50.0, 0.0) == 500e3  # fewer than twenty say nothing
    assert loss.update(100, 1, 50.0, 50.0) == pytest.approx(1.08 * 500e3 + 1000)
    before = loss.bps
    assert loss.update(100, 5, 50.0, 100.0) == before
    assert loss.update(100, 20, 50.0, 1500.0) == pytest.approx(0.9 * before)
    assert loss.update(100, 20, 50.0, 1800.0) == pytest.approx(0.9 * before)  # 300 ms and 50 to go
    assert loss.update(100, 20, 50.0, 1850.0) == pytest.approx(0.81 * before)


def test_growth_by_loss_is_from_the_least_rate_of_a_second() -> None:
    loss = LossController(100e3)
    for i in range(5):
        loss.update(100, 0, 50.0, 50.0 * i)
    assert loss.bps == pytest.approx(1.08 * 100e3 + 1000)


def test_what_is_acknowledged_is_measured() -> None:
    """1,200 bytes each 10 ms are 960 kbit/s."""
    acked = AckedBitrate()
    for i in range(200):
        acked.add(10.0 * i, 1200)
    assert acked.bps == pytest.approx(960e3, rel=0.02)


def test_the_papers_filter_starts_as_its_equations_say() -> None:
    """5 ms after 20: noise max(0.9^0.6 + (1 - 0.9^0.6) 25, 1) = 2.471, gain 0.101 / 2.572, 0.196 ms."""
    kalman = ArrivalFilter()
    assert kalman.add(5.0, 20.0) == pytest.approx(0.1963, abs=1e-3)
    for _ in range(500):
        kalman.add(5.0, 20.0)
    assert kalman.gradient == pytest.approx(5.0, abs=0.1)


def test_the_papers_detector_waits_for_100_ms() -> None:
    detector = PaperDetector()
    seen = [detector.add(30.0, 40.0) for _ in range(4)]
    assert seen.count(LinkUsage.OVER) == 2
    assert detector.threshold > 5.0


def test_a_call_finds_its_link_and_gives_way_when_it_shrinks() -> None:
    """2 Mbit/s for 15 s, then 0.6: GCC uses over half of the first and is below the second soon after."""
    link = Link("steps", RateTrace(np.array([0, 15 * SECOND]), np.array([2e6, 0.6e6]), 30 * SECOND))
    call, gcc = Call(made_table(), link), Gcc()
    decision = gcc.decide(call.step(300e3))
    rates = []
    while not call.done:
        decision = gcc.decide(call.step(decision.rate_bps, decision.probe_bps))
        rates.append(decision.rate_bps)
    assert 1.0e6 < np.mean(rates[200:290]) < 2.1e6
    assert np.mean(rates[400:]) < 0.7e6


def report(step: int, lost: int) -> Feedback:
    """50 ms in which ten packets of 1,250 bytes came, 2 Mbit/s, 40 ms after they were sent."""
    acks = np.zeros(10, ACK)
    acks["t_send"] = step * 50 * MS + np.arange(10) * 5 * MS
    acks["t_deliver"], acks["t_ack"] = acks["t_send"] + 40 * MS, acks["t_send"] + 80 * MS
    acks["size"] = 1250
    frames = np.zeros(0, FRAME)
    return Feedback((step + 3) * 50 * MS, acks, lost, 12_500, 0, 0, 2e6, frames, 0)


def test_losses_cut_the_rate_that_is_sent_however_long_none_was_lost() -> None:
    """The delay side stops at 1.5 times the 2 Mbit/s that arrive. After 30 s two of each ten packets are
    lost, and the first 20 packets that tell of it take a tenth (half of the share) off."""
    gcc = Gcc()
    for step in range(600):
        gcc.decide(report(step, 0))
    before = gcc.bps
    assert 2e6 < before < 3.3e6
    cut = [gcc.decide(report(600 + step, 2)).rate_bps for step in range(4)]
    assert min(cut) <= 0.92 * before


def test_gcc_does_not_starve_on_a_steady_link() -> None:
    outcome = run_call(Call(made_table(), Link("steady", constant(1e6))), Gcc())
    assert 0.6 < outcome.sent_mbps <= 1.01
    assert outcome.stalls_per_minute == 0
