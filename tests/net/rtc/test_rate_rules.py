"""Rate controllers on feedback made by hand: every expected rate is worked out in its test."""

from __future__ import annotations

import numpy as np
import pytest

from kdn.errors import BadInput
from kdn.net.rtc.call import MAX_RATE_BPS, MIN_RATE_BPS, Decision, Feedback, Link
from kdn.net.rtc.choose import controller
from kdn.net.rtc.control.aimd import AckedBitrate, Aimd, LossController
from kdn.net.rtc.control.delay import DelayStep, Detector, InterArrival, LinkUsage, Trendline
from kdn.net.rtc.control.gcc import Gcc
from kdn.net.rtc.control.kalman import KalmanGcc, PaperDetector
from kdn.net.rtc.control.oracle import RateOracle, capacity_bps
from kdn.net.rtc.control.rivals import BbrLike, Copa, Fbra, Salsify
from kdn.net.rtc.control.window import Measured, interval_of
from kdn.net.rtc.policy import Learned, Policy, Safeguarded
from kdn.net.rtc.rows import ACK, FRAME
from kdn.net.world import RateTrace, constant
from kdn.net.world.records import MS, SECOND

PACKET = 1228
BITS = PACKET * 8.0


def heard(
    now_ms: float,
    acks: list[tuple[float, float, float]],
    lost: int = 0,
    in_flight: int = 0,
    sent: int = 1 << 20,
) -> Feedback:
    """Packets of 1,228 bytes by (sent, arrived, acknowledged), in milliseconds."""
    rows = np.zeros(len(acks), ACK)
    for row, (at, there, back) in zip(rows, acks, strict=True):
        row["size"], row["t_send"] = PACKET, int(at * MS)
        row["t_deliver"], row["t_ack"] = int(there * MS), int(back * MS)
    frames = np.zeros(0, FRAME)
    return Feedback(int(now_ms * MS), rows, lost, sent, 0, in_flight, 300e3, frames, 0)


def spaced(
    start_ms: float, gap_ms: float, num: int, way_ms: float = 20.0
) -> list[tuple[float, float, float]]:
    """`num` packets that leave `gap_ms` apart and take `way_ms` each way."""
    sent = [start_ms + gap_ms * i for i in range(num)]
    return [(at, at + way_ms, at + 2 * way_ms) for at in sent]


def test_an_interval_is_told_by_hand() -> None:
    """Round trips 50, 50, 60, 80 of packets sent over 30 ms: 50 becomes 70, two thirds of a ms per ms."""
    one = interval_of(heard(100, [(0, 20, 50), (10, 30, 60), (20, 50, 80), (30, 70, 110)], lost=1))
    assert (one.acked, one.acked_bytes, one.loss) == (4, 4 * PACKET, 0.2)
    assert one.mean_rtt == pytest.approx(60.0)
    assert one.inflation == pytest.approx(20.0 / 30.0)
    assert one.one_way == pytest.approx((20 + 20 + 30 + 40) / 4)
    assert one.jitter == pytest.approx((0 + 10 + 10) / 3)


def test_a_silent_interval_is_zeros_and_one_packet_inflates_nothing() -> None:
    silent = interval_of(heard(100, [], lost=3))
    assert (silent.acked, silent.mean_rtt, silent.inflation, silent.loss) == (0, 0.0, 0.0, 1.0)
    lone = interval_of(heard(100, [(0, 20, 50)]))
    assert (lone.mean_rtt, lone.inflation, lone.jitter) == (50.0, 0.0, 0.0)


def test_what_is_older_than_the_span_is_forgotten() -> None:
    """Half a second holds eleven steps of 50 ms; a lossy first step is out after the twelfth."""
    seen = Measured(500.0)
    seen.add(heard(0, spaced(0, 1, 1), lost=9))
    for step in range(1, 11):
        seen.add(heard(50.0 * step, spaced(0, 1, 1)))
    assert seen.loss == pytest.approx(9 / 20)
    assert seen.goodput_bps == pytest.approx(BITS / 0.05)
    seen.add(heard(550.0, []))
    assert (seen.loss, len(seen.intervals)) == (0.0, 11)
    assert seen.goodput_bps == pytest.approx(10 / 11 * BITS / 0.05)


def test_a_jump_of_three_seconds_begins_the_groups_again() -> None:
    """The second group arrives 3,100 ms late: no step is told of it, nor of the group after it."""
    groups = InterArrival()
    for sent, arrived in ((0, 10), (20, 30), (40, 3150)):
        groups.add(sent, arrived)
    assert groups.add(60, 3170) is None
    assert groups.add(80, 3190) is None
    assert groups.add(100, 3210) is None
    assert groups.add(120, 3230) == (20, 20, 3210)


def test_three_packets_out_of_order_begin_the_groups_again() -> None:
    groups = InterArrival()
    for sent in (0, 20, 40):
        groups.add(sent, sent + 10)
    assert [groups.add(sent, 55) for sent in (39, 38)] == [None, None]
    assert groups.add(60, 70) == (20, 20, 50)  # two are passed over
    assert [groups.add(sent, 75) for sent in (59, 58, 57)] == [None] * 3
    assert groups.add(80, 90) is None
    assert groups.add(100, 110) is None


def test_equal_arrivals_have_no_slope() -> None:
    """Twenty steps that all arrive at one moment: a line through them has no slope, not an infinite one."""
    line = Trendline()
    for _ in range(20):
        slope = line.add(DelayStep(20.0, 0.0, 5.0))
    assert slope == 0.0


def test_a_trend_that_comes_back_to_normal_starts_its_count_again() -> None:
    """2.5 and 7.5 ms above the threshold, then below it: two more steps are again only 7.5 ms."""
    detector = Detector()
    trends = (20.0, 20.0, 0.0, 20.0, 20.0)
    seen = [detector.add(trend, 0.1, 5.0, 0.0) for trend in trends]
    assert seen == [LinkUsage.NORMAL] * 5
    assert detector.add(20.0, 0.1, 5.0, 0.0) is LinkUsage.OVER


def test_the_papers_threshold_follows_fast_up_and_slowly_down() -> None:
    """From 5: 10 ms at a gradient of 7 add 0.01 * 10 * 2; 10 ms at 1.2 then take 0.00018 * 10 * 4."""
    detector = PaperDetector()
    detector.add(7.0, 10.0)
    assert detector.threshold == pytest.approx(5.2)
    assert detector.add(1.2, 10.0) is LinkUsage.NORMAL
    assert detector.threshold == pytest.approx(5.2 - 0.0072)
    assert detector.add(-9.0, 10.0) is LinkUsage.UNDER


def test_a_new_rate_is_blended_by_how_far_it_is_from_the_old() -> None:
    """960 kbit/s, then 1,920 for 150 ms: spread 10, variances 100 and 55, so (96,000 + 105,600) / 155."""
    acked = AckedBitrate()
    for ms in range(0, 500, 10):
        acked.add(ms, 1200)
    assert acked.bps is None
    for ms in range(500, 650, 5):
        acked.add(ms, 1200)
    assert acked.bps == pytest.approx(960e3)
    acked.add(650, 1200)
    assert acked.bps == pytest.approx(1000.0 * (100 * 960 + 55 * 1920) / 155)


def test_a_pause_longer_than_the_window_is_not_counted_as_a_low_rate() -> None:
    """What came before a pause of 600 ms is dropped, and the window goes on 100 ms into itself."""
    acked = AckedBitrate()
    for ms in range(0, 300, 10):
        acked.add(ms, 1200)
    for ms in range(890, 1300, 10):
        acked.add(ms, 1200)
    assert acked.bps == pytest.approx(40 * 1200 * 8000 / 500)


def test_a_rate_above_the_known_capacity_forgets_it() -> None:
    """Overuse at 200 kbit/s: bounds 200 and 3 * sqrt(0.4 * 200) = 26.8; 300 is outside, so 1 kbit/s more."""
    aimd = Aimd(300e3)
    aimd.update(LinkUsage.OVER, 200e3, 100.0, 1000.0)
    assert aimd.capacity.bounds_bps() == pytest.approx((173.167e3, 226.833e3), abs=1.0)
    aimd.update(LinkUsage.NORMAL, 300e3, 100.0, 1050.0)
    assert aimd.capacity.kbps is None
    assert aimd.bps == pytest.approx(171e3)


def test_overuse_never_raises_the_rate() -> None:
    """100 kbit/s are sent and 200 arrive (an older, faster while): 85 % of it would be more."""
    aimd = Aimd(100e3)
    assert aimd.update(LinkUsage.OVER, 200e3, 100.0, 0.0) == 100e3
    assert aimd.update(LinkUsage.OVER, 200e3, 100.0, 500.0) == 100e3


def test_underuse_holds_until_the_queue_is_empty() -> None:
    aimd = Aimd(100e3)
    for at in (0.0, 50.0, 100.0):
        assert aimd.update(LinkUsage.UNDER, 100e3, 50.0, at) == 100e3
    assert aimd.update(LinkUsage.NORMAL, 100e3, 50.0, 150.0) == 101e3


def test_few_packets_are_summed_until_they_say_something() -> None:
    """Four reports of five packets with one lost each: 20 % of 20, so a tenth less, once."""
    loss = LossController(1e6)
    rates = [loss.update(5, 1, 50.0, 1000.0 + 50.0 * i) for i in range(4)]
    assert rates == pytest.approx([1e6, 1e6, 1e6, 0.9e6])


def test_five_fast_packets_probe_a_rate() -> None:
    """Six packets 4 ms apart at both ends: five in 20 ms are 2.456 Mbit/s; 3 and 6 times follow."""
    gcc = Gcc()
    decision = gcc.decide(heard(100, spaced(10, 4, 6)))
    assert decision.rate_bps == pytest.approx(5 * BITS / 0.020)
    assert decision.probe_bps == pytest.approx(3 * 5 * BITS / 0.020)
    assert (
        gcc.decide(heard(150, [])).probe_bps == MAX_RATE_BPS
    )  # six times is above what a call may have


def test_a_probe_that_the_link_slowed_counts_as_its_capacity() -> None:
    """Sent within 20 ms, arrived within 40: 1.228 Mbit/s, of which 95 % are used."""
    gcc = Gcc()
    decision = gcc.decide(heard(100, [(10 + 4 * i, 30 + 8 * i, 50 + 8 * i) for i in range(6)]))
    assert decision.rate_bps == pytest.approx(0.95 * 5 * BITS / 0.040)


def test_four_packets_probe_nothing() -> None:
    """In the first two seconds without loss the delay side leads: 1 kbit/s more."""
    assert Gcc().decide(heard(100, spaced(10, 6, 4))).rate_bps == pytest.approx(301e3)


def test_gcc_lowers_by_half_the_loss() -> None:
    """Eighty of a hundred arrive: 300 kbit/s less a tenth."""
    gcc = Gcc()
    decision = gcc.decide(heard(3000, spaced(0, 30, 80), lost=20))
    assert decision.rate_bps == pytest.approx(270e3)


def test_an_idle_sender_probes_after_five_seconds() -> None:
    gcc = Gcc()
    for _ in range(3):
        gcc.decide(heard(100, spaced(10, 30, 2)))  # the first probes, at 3 and 6 times
    probes = [gcc.decide(heard(1000 + 50 * i, [], sent=500)).probe_bps for i in range(102)]
    assert probes[:100] == [0.0] * 100
    assert probes[100] == pytest.approx(2 * gcc.bps)
    assert probes[101] == 0.0


def test_the_papers_controller_lowers_by_half_the_loss_twice_a_second_at_most() -> None:
    """Twenty of forty are lost: three quarters are left of 300 kbit/s, and no growth while it lasts."""
    gcc = KalmanGcc()
    for i in range(11):
        rate = gcc.decide(heard(1000 + 50 * i, spaced(100 * i, 5, 20), lost=20)).rate_bps
        assert rate == pytest.approx(0.75 * 300e3)
    after = gcc.decide(heard(1550, spaced(1100, 5, 20), lost=20)).rate_bps
    assert after == pytest.approx(0.75**2 * 300e3)


def test_the_papers_controller_grows_by_the_smaller_of_its_two_rates() -> None:
    """Both grow by 1.05 a second without loss; from 2 % lost on that by loss is held."""
    gcc = KalmanGcc()
    assert gcc.decide(heard(50, spaced(0, 5, 20))).rate_bps == pytest.approx(300e3 * 1.05**0.05)
    assert gcc.decide(heard(100, spaced(100, 5, 20))).rate_bps == pytest.approx(300e3 * 1.05**0.1)
    gcc = KalmanGcc()
    assert gcc.decide(heard(50, spaced(0, 5, 19), lost=1)).rate_bps == 300e3


def test_the_papers_controller_asks_for_at_most_half_as_much_again_as_arrives() -> None:
    """Two packets in 150 ms: 131 kbit/s; 1.5 times that and 10 are 206.5."""
    gcc = KalmanGcc()
    for i, num in enumerate((1, 0, 1)):
        rate = gcc.decide(heard(50.0 * (i + 1), spaced(100 * i, 5, num))).rate_bps
    assert rate == pytest.approx(1.5 * 2 * BITS / 0.15 + 10e3)


def test_salsify_sends_what_arrives_within_a_tenth_of_a_second() -> None:
    """A packet each 32.7 ms: never above 300 kbit/s; with two in flight 100 / 32.7 - 2 packets a picture."""
    gap = BITS * 1000 / 300e3
    assert Salsify().decide(heard(50, [])).rate_bps == pytest.approx(300e3)
    short = Salsify().decide(heard(50, [], in_flight=2 * PACKET))
    assert short.rate_bps == pytest.approx((100 / gap - 2) * BITS * 25)
    assert Salsify().decide(heard(50, [], in_flight=9 * PACKET)).rate_bps == MIN_RATE_BPS
    slow = controller("salsify", Link("any", constant(1e6)), {}, 12.5)
    half = slow.decide(heard(50, [], in_flight=2 * PACKET)).rate_bps
    assert half == pytest.approx(short.rate_bps / 2)


def test_copa_grows_by_its_velocity_over_delta_windows() -> None:
    """No queue: one packet heard adds 1 / (0.5 * 10); the third step upwards doubles the velocity."""
    copa, window = Copa(), 10.0
    assert copa.decide(heard(50, [])) == Decision(300e3)
    for step, velocity in ((2, 1.0), (3, 1.0), (4, 2.0)):
        window += velocity / (0.5 * window)
        at = 50.0 * step
        rate = copa.decide(heard(at, [(at - 100, at - 50, at)])).rate_bps
        assert rate == pytest.approx(window * BITS * 10)


def test_copa_gives_way_to_a_standing_queue() -> None:
    """100 ms stand: a target of 20 packets a second, where 10 in 150 ms are 68; the window falls by 0.2."""
    copa = Copa()
    copa.decide(heard(50, [(0, 25, 50)]))
    after = 10.2
    rate = copa.decide(heard(1000, [(850, 950, 1000)])).rate_bps
    assert rate == pytest.approx((after - 1 / (0.5 * after)) * BITS / 0.150, rel=1e-6)


def test_a_bbr_like_start_doubles_until_delay_stands() -> None:
    """Five packets in 50 ms: twice 982 kbit/s. Round trips of 80 where 40 was the least end the start."""
    bbr = BbrLike()
    first = bbr.decide(heard(50, spaced(0, 5, 5)))
    assert first.rate_bps == pytest.approx(2 * 5 * BITS / 0.05)
    assert first.probe_bps == first.rate_bps
    bbr.decide(heard(100, spaced(50, 5, 5, way_ms=40)))
    cruise = bbr.decide(heard(150, spaced(100, 5, 5)))
    assert cruise.rate_bps == pytest.approx(0.9 * 5 * BITS / 0.05)
    assert cruise.probe_bps == 0.0


def test_fbra_goes_down_when_more_than_a_tenth_is_lost() -> None:
    """One of six: 85 % of 300 kbit/s, and repair packets grow rarer, from one in 6 to one in 8."""
    fbra = Fbra()
    down = fbra.decide(heard(50, spaced(0, 5, 5), lost=1))
    assert down.rate_bps == pytest.approx(255e3)
    assert fbra.interval == 8
    again = fbra.decide(heard(100, spaced(50, 5, 5), lost=1))
    assert again == down  # not twice within 200 ms


def test_fbra_probes_with_repair_and_keeps_what_did_no_harm() -> None:
    """Steady delays: after 300 ms one packet in six is repair; after 200 more the rate takes it over."""
    fbra = Fbra()
    told = [fbra.decide(heard(50.0 * i, spaced(50 * i, 5, 5))) for i in range(1, 14)]
    probing = [d.probe_bps > 0 for d in told]
    first = probing.index(True)
    assert 50.0 * (first + 1) == 350.0
    assert told[first].probe_bps == pytest.approx(300e3 * 7 / 6)
    assert told[first + 5].rate_bps == pytest.approx(350e3)


def test_the_oracle_sends_less_by_what_stands_in_the_queue() -> None:
    """1 Mbit/s, 50 ms there and back: 6,250 bytes belong to the way; 10,000 more cost 200 kbit/s."""
    oracle = RateOracle(Link("known", constant(1e6)))
    assert oracle.decide(heard(100, [], in_flight=6250)).rate_bps == pytest.approx(950e3)
    assert oracle.decide(heard(100, [], in_flight=16_250)).rate_bps == pytest.approx(750e3)
    assert oracle.decide(heard(100, [], in_flight=1 << 30)).rate_bps == MIN_RATE_BPS


def test_a_gap_in_a_recorded_link_carries_nothing() -> None:
    """Packets may leave at 0 and 10 ms of each second; a call's have 1,228 bytes at most."""
    link = Link("gap", RateTrace(np.array([0, 10]) * MS, np.zeros(2), SECOND, opportunities=True))
    assert capacity_bps(link, 100 * MS, 900 * MS) == 0.0
    assert capacity_bps(link, 900 * MS, 1900 * MS) == pytest.approx(2 * BITS)


def test_the_oracle_counts_the_packets_of_a_call() -> None:
    """A hundred opportunities a second carry 982.4 kbit/s of 1,228 bytes, of which it takes 95 %."""
    every = RateTrace(np.arange(100) * 10 * MS, np.zeros(100), SECOND, opportunities=True)
    oracle = RateOracle(Link("recorded", every))
    assert oracle.decide(heard(100, [])).rate_bps == pytest.approx(0.95 * 982_400)


def test_a_safeguard_takes_over_after_three_lossy_steps_for_a_second() -> None:
    """The policy always halves again (an action of -2 divides by 2); GCC drives steps 3 to 22."""
    still = Policy("still", ((np.zeros((1, 31), np.float32), np.array([-2.0], np.float32)),))
    safe = Safeguarded(Learned(still, 4e6))
    rates = [safe.decide(heard(50.0 * i, spaced(50 * i, 25, 2), lost=1)).rate_bps for i in (1, 2)]
    assert rates == pytest.approx([2e6, 1e6])
    third = safe.decide(heard(150, spaced(150, 25, 2), lost=1)).rate_bps
    assert (safe.fallbacks, third != 0.5e6) == (1, True)
    for i in range(4, 23):
        driven = safe.decide(heard(50.0 * i, spaced(50 * i, 25, 2))).rate_bps
    back = safe.decide(heard(1150, spaced(1150, 25, 2))).rate_bps
    assert back == pytest.approx(max(driven / 2, MIN_RATE_BPS))


def test_an_unknown_controller_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadInput, match="no controller 'tcp'; there are ours, ours-safe"):
        controller("tcp", Link("any", constant(1e6)), {})


def test_a_controller_whose_policy_is_not_given_is_refused() -> None:
    with pytest.raises(
        BadInput, match="'ours' follows the policy 'codec-aware', which is not among"
    ):
        controller("ours", Link("any", constant(1e6)), {})
