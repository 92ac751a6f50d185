"""The rules of a call on rows made by hand: pacing, resending, decoding, what a viewer got, what is paid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.net.rtc.table import made_table

from kdn.errors import BadConfig, BadInput
from kdn.net.rtc import loop
from kdn.net.rtc.call import Call, CallOutcome, Link, mean_outcome
from kdn.net.rtc.codec.picture import ssim_db
from kdn.net.rtc.control.window import Interval
from kdn.net.rtc.reward import Paid, Scales, codec_aware, network_only, onrl
from kdn.net.rtc.rows import CODED, DECODED, FRAME, PACKET_LOST, PADDING, SKIPPED
from kdn.net.rtc.tables import RateTable
from kdn.net.world import constant
from kdn.net.world.records import MS, SECOND

LINK = Link("by hand", constant(1e6))


def made(survives: bool = True, spare: float = 0.0) -> Call:
    return Call(made_table(survives, spare), LINK, seconds=4.0)


def code(call: Call, num: int, payload: int = 100, intra: bool = False) -> int:
    """A picture of `num` packets goes to the pacer."""
    frame = loop.book(call.state, 0, 3, num, intra)
    for index in range(num):
        loop.add_packet(call.state, frame, index, payload)
    return int(frame)


def send(call: Call, num: int) -> None:
    for _ in range(num):
        loop.take_packet(call.state, 0)


def arrive(call: Call, *numbers: int) -> None:
    """Transmissions arrive 30 ms after the call began, and are heard of at 50."""
    for number in numbers:
        loop.arrived(call.state, number, 30 * MS, 50 * MS)


def fates(call: Call) -> list[int]:
    return [int(fate) for fate in call.frames["fate"]]


@pytest.mark.parametrize(
    ("rate", "probe", "bps"),
    [(300e3, 0.0, 450e3), (60e3, 0.0, 100e3), (300e3, 3e6, 3e6), (300e3, 1e5, 450e3)],
)
def test_the_pacer_goes_at_half_as_much_again_at_least_100_kbit(
    rate: float, probe: float, bps: float
) -> None:
    call = made()
    row = call.state.call[0]
    row["rate"], row["probe"] = rate, probe
    code(call, 3, payload=1200)
    send(call, 2)
    assert row["next_send"] == pytest.approx(2 * 1228 * 8 * SECOND / bps, abs=2)
    assert (row["waiting_bytes"], row["sent_bytes"]) == (1228, 2 * 1228)


def test_no_picture_is_coded_while_150_ms_wait() -> None:
    """450 kbit/s: 8,437.5 bytes are 150 ms. Seven packets of 1,228 bytes are more, six are not."""
    call = made()
    code(call, 6, payload=1200)
    assert not loop.holds_enough(call.state)
    loop.capture(call.state, 40 * MS)
    assert call.frames[1]["count"] >= 5
    call = made()
    code(call, 7, payload=1200)
    assert loop.holds_enough(call.state)
    loop.capture(call.state, 40 * MS)
    assert (call.frames[1]["count"], call.frames[1]["bytes"]) == (0, 0)


def test_what_a_picture_saves_is_kept_up_to_one_share() -> None:
    """300 kbit/s at 25 pictures: 1,500 bytes each. 640 are used: 860 are saved, then all of 1,500 at most."""
    call = made()
    saved = []
    for _ in range(2):
        loop.settle(call.state, code(call, 5))
        saved.append(float(call.state.call[0]["saved"]))
    assert saved == pytest.approx([860.0, 1500.0])
    loop.settle(call.state, code(call, 5, payload=900))
    assert call.state.call[0]["saved"] == 0.0  # 4,640 bytes are more than 3,000


def test_the_first_picture_is_sent_again_until_it_is_whole() -> None:
    """Packet 3 of 0 to 4 is lost, and so is its second transmission: nothing is shown before the third."""
    call = made()
    code(call, 5, intra=True)
    send(call, 5)
    arrive(call, 0, 1, 2, 4)
    assert call.state.call[0]["num_packets"] == 6
    code(call, 5)
    send(call, 6)
    arrive(call, 6)  # the next picture's; 5 was the second try
    assert call.state.sent["status"][5] == PACKET_LOST
    assert fates(call) == [CODED, CODED]
    send(call, 1)
    arrive(call, 11)
    assert fates(call)[0] == DECODED
    assert call.frames[0]["loss"] == 0.0
    assert call.state.call[0]["num_lost"] == 6  # 3 and 5, and 7 to 10 that were overtaken


def test_a_tenth_of_a_picture_is_shown_and_less_is_not() -> None:
    """Two of twenty packets are a tenth. Of the next only one has come when a later picture begins."""
    call = made()
    code(call, 5, intra=True)
    for _ in range(2):
        code(call, 20)
    code(call, 5)
    send(call, 50)
    arrive(call, *range(5), 5, 6)
    assert fates(call) == [DECODED, CODED, CODED, CODED]  # it may yet become whole
    arrive(call, 25)
    assert fates(call) == [DECODED, DECODED, CODED, CODED]
    assert call.frames[1]["loss"] == pytest.approx(0.9)
    arrive(call, 45)
    assert fates(call) == [DECODED, DECODED, SKIPPED, CODED]


def test_a_late_packet_of_a_shown_picture_changes_nothing() -> None:
    call = made()
    code(call, 5, intra=True)
    code(call, 5)
    code(call, 5)
    send(call, 15)
    arrive(call, *range(9), 10)
    before = call.frames[1].copy()
    assert before["loss"] == pytest.approx(0.2)
    arrive(call, 9)
    after = call.frames[1]
    assert (after["quality"], after["t_decode"]) == (before["quality"], before["t_decode"])


def test_padding_is_heard_but_belongs_to_no_picture() -> None:
    call = made()
    code(call, 5, intra=True)
    loop.pad(call.state)
    send(call, 6)
    arrive(call, *range(4), 5)  # the padding tells of the loss of 4
    assert call.state.sent["frame"][5] == PADDING
    assert call.state.sent["status"][4] == PACKET_LOST
    assert fates(call) == [CODED]
    assert call.state.call[0]["acked_bytes"] == 4 * 128 + 1228


def test_repair_packets_stand_in_for_so_many_lost_ones() -> None:
    """A fifth of ten packets repairs: eight are enough, seven break the chain and ask for a whole one."""
    call = made(survives=False, spare=0.2)
    code(call, 10, intra=True)
    code(call, 10)
    code(call, 10)
    send(call, 30)
    arrive(call, *range(2, 10), *range(10, 17), 20)
    assert fates(call) == [DECODED, SKIPPED, CODED]
    assert (call.state.call[0]["broken"], call.state.call[0]["key_due"]) == (1, 1)
    assert call.frames[0]["quality"] == pytest.approx(made_table().ssim[0, 3, 0])


def test_quality_lies_on_a_line_between_tenths() -> None:
    table = np.arange(10.0).reshape(1, 1, 10)
    losses = (0.0, 0.25, 0.9, 0.97, -1.0)
    assert [loop.quality_of(table, 0, 0, loss) for loss in losses] == pytest.approx(
        [0, 2.5, 9, 9, 0]
    )


def test_a_clip_is_played_forth_and_back() -> None:
    assert [loop.place_of(number, 4) for number in range(8)] == [0, 1, 2, 3, 2, 1, 0, 1]
    assert [loop.place_of(number, 1) for number in range(3)] == [0, 0, 0]


def watched(shown: list[int], delay_ms: int = 100) -> CallOutcome:
    """Three seconds at 25 a second; these pictures are shown 100 ms after they were captured."""
    call = made()
    frames = call.state.frames
    call.state.call["num_frames"] = 75
    call.world.clock["now"] = 3 * SECOND
    frames["t"][:75] = np.arange(75) * 40 * MS
    for number in shown:
        row = frames[number]
        row["fate"], row["t_decode"] = DECODED, row["t"] + delay_ms * MS
        row["quality"], row["psnr"] = 0.9, 30.0
    return call.outcome()


def test_a_freeze_that_begins_in_the_warm_up_counts_from_its_end() -> None:
    """Shown until 0.86 s and again from 1.62: of two seconds 0.62 are one stall, and 13 of 25 are missed."""
    outcome = watched([*range(20), *range(38, 71)])
    assert outcome.stalls_per_minute == pytest.approx(30.0)
    assert outcome.stall_share == pytest.approx(0.31)
    assert outcome.undecoded_share == pytest.approx(13 / 25)
    assert outcome.p95_delay_ms == pytest.approx(100.0)
    assert outcome.ssim_db == pytest.approx(10.0)


def test_gaps_of_200_ms_are_no_stalls_and_longer_ones_are() -> None:
    every_fifth = [*range(0, 71, 5)]
    assert watched(every_fifth).stalls_per_minute == 0.0
    one_less = [number for number in every_fifth if number != 50]
    assert watched(one_less).stall_share == pytest.approx(0.2)


def test_pictures_that_come_late_but_steadily_are_no_stall() -> None:
    """Each is half a second late: until 1.5 s the viewer sees those that were captured in the warm-up."""
    outcome = watched([*range(62)], delay_ms=500)
    assert outcome.stalls_per_minute == 0.0
    assert outcome.p95_delay_ms == pytest.approx(500.0)


def test_a_call_that_shows_nothing_is_all_stall_and_no_quality() -> None:
    outcome = watched([])
    assert (outcome.stall_share, outcome.undecoded_share, outcome.ssim_db) == (1.0, 1.0, 0.0)
    assert outcome.p95_delay_ms == 3000.0  # the first picture is waited for all the time


def test_similarity_in_decibels() -> None:
    assert [ssim_db(value) for value in (0.0, 0.9, 0.99)] == pytest.approx([0.0, 10.0, 20.0])
    assert ssim_db(1.0) == pytest.approx(50.0)


def test_outcomes_are_averaged_number_by_number() -> None:
    good, bad = watched([*range(71)]), watched([])
    both = mean_outcome([good, bad])
    assert both.stall_share == pytest.approx(0.5)
    assert both.p95_delay_ms == pytest.approx(1550.0)


INTERVAL = Interval(1000.0, 5000, 5000, 5, 0, 60.0, 0.0, 30.0, 1.0)


def paid(quality: float, first: int = 0, **changes: float) -> Paid:
    """One shown picture and a skipped one after it; the table's picture 38 is easier than the others."""
    frames = np.zeros(2, FRAME)
    frames["fate"], frames["quality"] = (DECODED, SKIPPED), (quality, 0.0)
    scales = Scales(np.full(50, 0.8), np.full(50, 0.9))
    scales.greatest[38] = 1.0
    feedback = replace(made().step(300e3), frames=frames, first_frame=first)
    return Paid(feedback, replace(INTERVAL, **changes), scales, 60.0, 1e6, 1e6)  # type: ignore[arg-type]


def test_the_delay_that_is_paid_for_is_this_steps() -> None:
    """The published code held it constant. Half a quality, less a tenth per base round trip, ten at most."""
    rtts = (30.0, 60.0, 90.0, 120.0, 660.0, 6000.0)
    seen = [codec_aware(paid(0.85, mean_rtt=rtt)) for rtt in rtts]
    assert seen == pytest.approx([0.5, 0.5, 0.45, 0.4, -0.5, -0.5])


def test_quality_is_on_the_scale_of_its_own_picture() -> None:
    """Picture 60 of a clip of 50 is its 38th, played backwards: 0.85 is a quarter of 0.8 to 1."""
    assert codec_aware(paid(0.85, first=60)) == pytest.approx(0.25)
    assert codec_aware(paid(0.2)) == -1.0  # far below the scale costs no more than a stall


def test_rewards_that_know_only_the_network_by_hand() -> None:
    """0.8 Mbit/s: OnRL's (40 - 3 - 30 * 0.2) / 50. A silent step with all lost: (-1000 - 2000) / 500."""
    assert onrl(paid(0.85)) == pytest.approx(0.62)
    assert network_only(paid(0.85, acked=0, acked_bytes=0, lost=5)) == pytest.approx(-6.0)
    assert network_only(paid(0.85, acked=4, lost=1)) == pytest.approx((400 - 60 - 400) / 500)


@pytest.mark.parametrize("wrong", [{"delay_ms": -1.0}, {"loss": 1.0}, {"loss": -0.1}])
def test_a_link_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(BadConfig, match="a loss below 1 are wanted"):
        Link("wrong", constant(1e6), **wrong)  # type: ignore[arg-type]


def test_a_table_whose_sizes_fall_with_the_level_is_refused() -> None:
    table = made_table()
    with pytest.raises(BadInput, match="above 0 and rise with the level"):
        RateTable(
            "falls",
            "x",
            25.0,
            table.sizes[:, ::-1],
            table.intra_sizes,
            table.ssim,
            table.psnr_db,
            True,
        )
