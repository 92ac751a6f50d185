"""Packets of made-up pictures: any subset says what it carries, and nothing else is taken for it."""

from __future__ import annotations

import binascii
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdn.errors import BadInput
from kdn.net.rtc.codec.packets import (
    CLASSES,
    FORMAT,
    HEADER_BYTES,
    LEAST_PACKETS,
    MIXES,
    MOST_PAYLOAD,
    CodecTables,
    Coded,
    classes_of,
    deal,
    gather,
    picture_bytes,
    read_header,
)

GROUPS, PER_BLOCK, CHANNELS = 2, 2, 3


def tables() -> CodecTables:
    random = np.random.default_rng(5)
    scales = np.tile(
        (np.arange(CLASSES, dtype=np.uint8) * 3)[None, :, None, None], (2, 1, GROUPS, CHANNELS)
    )
    return CodecTables(scales, random.dirichlet(np.ones(CLASSES), (2, MIXES)))


def coded(
    seed: int,
    rows: int,
    columns: int,
    loud: float,
    intra: bool,
    number: int = 7,
    copies: int = 1,
) -> Coded:
    random = np.random.default_rng(seed)
    grid = (GROUPS, rows * PER_BLOCK, columns * PER_BLOCK)
    units = np.rint(random.laplace(0, loud, (int(np.prod(grid)), CHANNELS))).astype(np.int32)
    units = np.clip(units, -32767, 32767)  # what an escape of 16 bits holds
    units[random.random(len(units)) < 0.5] = 0
    vectors = random.integers(-127, 128, (rows, columns, 2)).astype(np.int8)
    return Coded(number, intra, 3, units, grid, vectors * np.int8(not intra), copies)


pictures = st.builds(
    coded,
    st.integers(0, 1 << 20),
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from([0.05, 1.0, 30.0, 5000.0]),
    st.booleans(),
    st.sampled_from([0, 7, (1 << 32) - 1]),
    st.integers(1, 4),
)


@settings(max_examples=30)
@given(pictures, st.data())
def test_any_subset_says_what_it_carries(picture: Coded, data: st.DataObject) -> None:
    packets = deal(picture, tables())
    assert len(packets) >= LEAST_PACKETS
    assert max(map(len, packets)) <= MOST_PAYLOAD
    kept = data.draw(st.sets(st.sampled_from(range(len(packets))), min_size=1))
    dealt = gather([packets[i] for i in sorted(kept, reverse=True)], tables(), GROUPS, PER_BLOCK)
    here = dealt.present
    assert np.array_equal(dealt.units[here], picture.units[here])
    assert not dealt.units[~here].any()
    there = dealt.vectors_present
    assert np.array_equal(dealt.vectors[there], picture.vectors[there])
    if len(kept) == len(packets):
        assert here.all()
        assert there.all() == (not picture.intra)


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(1, 255))
def test_one_changed_byte_is_always_refused(seed: int, at: int, flip: int) -> None:
    packet = bytearray(deal(coded(seed, 2, 3, 2.0, intra=False), tables())[seed % LEAST_PACKETS])
    packet[at % len(packet)] ^= flip
    with pytest.raises(BadInput, match="damaged"):
        read_header(bytes(packet))


def test_packets_of_other_weights_are_refused_before_anything_is_read() -> None:
    """0x0102 coded it; a decoder without a fingerprint, and one of 0xabcd, say so in one sentence."""
    picture = replace(coded(1, 2, 2, 2.0, intra=False), weights=0x0102)
    packets = deal(picture, tables())
    assert gather(packets, tables(), GROUPS, PER_BLOCK, 0x0102).present.all()
    for other in (0, 0xABCD):
        with pytest.raises(
            BadInput, match=f"weights 0102, and this decoder has {other:04x}: give both"
        ):
            gather(packets, tables(), GROUPS, PER_BLOCK, other)


def test_a_packet_of_another_format_is_refused_by_its_number() -> None:
    """The flags are the seventh byte: 8 is one format more."""
    packet = bytearray(deal(coded(1, 2, 2, 2.0, intra=False), tables())[0])
    packet[6] += 8
    check = binascii.crc_hqx(packet[HEADER_BYTES:], binascii.crc_hqx(packet[: HEADER_BYTES - 2], 0))
    packet[HEADER_BYTES - 2 : HEADER_BYTES] = check.to_bytes(2, "little")
    with pytest.raises(
        BadInput, match=f"has format {FORMAT + 1}, and this decoder reads {FORMAT}: use one"
    ):
        read_header(bytes(packet))


def test_a_header_says_where_its_packet_belongs() -> None:
    packets = deal(coded(1, 2, 3, 2.0, intra=True, number=41), tables())
    seen = [read_header(packet) for packet in packets]
    assert [(h.number, h.index, h.count, h.intra) for h in seen] == [
        (41, i, len(packets), True) for i in range(len(packets))
    ]
    assert {(h.rows, h.columns, h.level) for h in seen} == {(2, 3, 3)}


def test_packets_of_two_pictures_are_not_mixed() -> None:
    one, other = (deal(coded(1, 2, 2, 2.0, True, number), tables()) for number in (1, 2))
    with pytest.raises(BadInput, match="do not belong together"):
        gather([one[0], other[1]], tables(), GROUPS, PER_BLOCK)
    with pytest.raises(BadInput, match="there is no packet"):
        gather([], tables(), GROUPS, PER_BLOCK)
    with pytest.raises(BadInput, match="this one 3"):
        read_header(one[0][:3])


def test_the_bytes_of_a_picture_are_foretold() -> None:
    """To a twentieth, where the picture is longer than its headers."""
    for loud in (2.0, 30.0):
        picture = coded(3, 12, 12, loud, intra=False)
        real = sum(map(len, deal(picture, tables())))
        assert picture_bytes(picture, tables()) == pytest.approx(real, rel=0.05)


def test_a_picture_that_255_packets_do_not_hold_is_refused() -> None:
    with pytest.raises(BadInput, match="needs over 255 packets; scale the video down"):
        deal(coded(1, 100, 100, 5000.0, intra=True), tables())


def test_the_class_of_a_unit_is_told_by_its_mean_magnitude() -> None:
    """Mean magnitudes 0, 1/3, 1 and 3: below 1e-9, from 0.3, from 1.0, from 2.0."""
    units = np.array([[0, 0, 0], [0, -1, 0], [1, -1, 1], [-3, 3, 3]], np.int32)
    assert classes_of(units).tolist() == [0, 3, 5, 6]


@pytest.mark.parametrize(("copies", "missing"), [(1, 1), (2, 1), (3, 2)])
def test_a_vector_is_lost_when_all_its_copies_are(copies: int, missing: int) -> None:
    """Of five packets one more may be lost for each further copy; one copy misses some with the first."""
    picture = coded(3, 6, 6, 1.0, intra=False, copies=copies)
    packets = deal(picture, tables())
    assert len(packets) == LEAST_PACKETS
    found = gather(packets[missing:], tables(), GROUPS, PER_BLOCK)
    assert found.vectors_present.all() == (copies > missing)
    there = found.vectors_present
    assert np.array_equal(found.vectors[there], picture.vectors[there])
    assert not found.present.all()
