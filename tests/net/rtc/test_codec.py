"""The neural codec: any subset decodes, sizes are kept, and both ends agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.net.rtc.clip import codec, moving

from kdn.errors import BadInput
from kdn.net.rtc.codec.neural import NeuralDecoder, NeuralEncoder, load_codec, save_codec
from kdn.net.rtc.codec.packets import HEADER_BYTES, LEAST_PACKETS, MOST_PAYLOAD, read_header
from kdn.net.rtc.codec.picture import Picture, psnr_db


def same(a: Picture | None, b: Picture | None) -> bool:
    assert a is not None
    assert b is not None
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def at(level: int) -> Callable[[Callable[[int], int]], int]:
    return lambda _sizes: level


def test_without_loss_both_ends_have_the_same_picture_bit_for_bit() -> None:
    encoder, decoder = NeuralEncoder(codec()), NeuralDecoder(codec())
    for picture in moving().pictures:
        shown = decoder.decode(encoder.encode_at(picture, at(4)))
        assert same(shown, encoder.reference)


def test_higher_levels_cost_more_and_look_better() -> None:
    sizes, quality = [], []
    for level in (0, 3, 7):
        encoder, decoder = NeuralEncoder(codec()), NeuralDecoder(codec())
        for picture in moving().pictures:
            packets = encoder.encode_at(picture, at(level))
            shown = decoder.decode(packets)
        assert shown is not None
        sizes.append(sum(len(packet) for packet in packets))
        quality.append(psnr_db(shown, picture))
    assert sizes == sorted(sizes)
    assert quality[0] + 2.0 < quality[1] < quality[2]


def test_a_budget_is_kept_where_a_level_fits() -> None:
    encoder = NeuralEncoder(codec())
    encoder.encode(moving().pictures[0], 4000)
    for picture in moving().pictures[1:]:
        packets = encoder.encode(picture, 1500)
        assert len(packets) >= LEAST_PACKETS
        assert max(len(packet) for packet in packets) <= MOST_PAYLOAD
        assert encoder.newest[1] == 0 or sum(map(len, packets)) <= 1500 * 1.08


@pytest.mark.parametrize("kept", [[0], [1, 4], [0, 2, 3], [4]])
def test_any_subset_of_packets_decodes(kept: list[int]) -> None:
    encoder, decoder = NeuralEncoder(codec()), NeuralDecoder(codec())
    first, second = moving().pictures[:2]
    decoder.decode(encoder.encode_at(first, at(5)))
    packets = encoder.encode_at(second, at(3))
    shown = decoder.decode([packets[i] for i in kept if i < len(packets)])
    assert shown is not None
    assert psnr_db(shown, second) > 15.0


def test_more_packets_are_better_in_the_mean() -> None:
    first, second = moving().pictures[:2]
    means = []
    for num in (1, 3, 5):
        found = []
        for start in range(5):
            encoder, decoder = NeuralEncoder(codec()), NeuralDecoder(codec())
            decoder.decode(encoder.encode_at(first, at(5)))
            packets = encoder.encode_at(second, at(2))
            count = len(packets)
            some = [packets[(start + i) % count] for i in range(max(num * count // 5, 1))]
            shown = decoder.decode(some)
            assert shown is not None
            found.append(psnr_db(shown, second))
        means.append(float(np.mean(found)))
    assert means == sorted(means)


def turned(picture: Picture) -> Picture:
    """Another scene: nothing is where it was, and light is dark."""
    y, u, v = (255 - plane[::-1, ::-1] for plane in picture)
    return Picture(y, u, v)


def test_a_new_scene_begins_with_an_intra_picture_and_the_next_waits_twelve() -> None:
    """Scenes change at pictures 13 and 20 and at 26: seven after the first change is too soon."""
    clip, encoder, decoder = moving().pictures, NeuralEncoder(codec()), NeuralDecoder(codec())
    coded_whole = []
    for number in range(28):
        scene = clip[number % 2]
        other = 13 <= number < 20 or number >= 26
        packets = encoder.encode_at(turned(scene) if other else scene, at(3))
        shown = decoder.decode(packets)
        if encoder.newest[0]:
            coded_whole.append(number)
        if len(coded_whole) > 1 and number == coded_whole[-1]:
            assert shown is not None
            assert psnr_db(shown, turned(scene) if other else scene) > 25.0
    assert coded_whole == [0, 13, 26]
    assert same(shown, encoder.reference)


def test_after_a_loss_the_encoder_replays_what_the_decoder_did() -> None:
    """Picture 1 arrives in part, 2 is lost whole, the sender hears of both after 4: they agree again."""
    encoder, decoder = NeuralEncoder(codec()), NeuralDecoder(codec())
    for number, picture in enumerate(moving().pictures[:5]):
        packets = encoder.encode_at(picture, at(3))
        kept = {1: packets[:2], 2: []}.get(number, packets)
        decoder.decode(kept)
    assert not same(decoder.shown, encoder.reference)
    encoder.learn(1, {0, 1})
    encoder.learn(2, set())
    assert same(decoder.shown, encoder.reference)
    shown = decoder.decode(encoder.encode_at(moving().pictures[5], at(3)))
    assert same(shown, encoder.reference)


def test_vectors_are_sent_twice_while_losses_are_heard_of() -> None:
    """One packet of five lost is 20 %, of which a tenth counts: above 4 % after three such pictures."""
    encoder, copies = NeuralEncoder(codec()), []
    for number, picture in enumerate((*moving().pictures, *moving().pictures)):
        packets = encoder.encode_at(picture, at(1))
        copies.append(read_header(packets[0]).copies)
        encoder.learn(number, set(range(len(packets) - (1 <= number <= 3))))
    assert copies == [1, 1, 1, 1, 2, 2, 2, *[1] * 9]


def test_the_first_picture_needs_all_its_packets() -> None:
    encoder, decoder = NeuralEncoder(codec()), NeuralDecoder(codec())
    packets = encoder.encode_at(moving().pictures[0], at(3))
    assert decoder.decode(packets[1:]) is None
    assert decoder.decode(packets) is not None


def test_damaged_packets_are_refused_and_counted() -> None:
    encoder, decoder = NeuralEncoder(codec()), NeuralDecoder(codec())
    decoder.decode(encoder.encode_at(moving().pictures[0], at(3)))
    packets = encoder.encode_at(moving().pictures[1], at(3))
    harmed = bytearray(packets[0])
    harmed[HEADER_BYTES + 3] ^= 16
    with pytest.raises(BadInput, match="checksum"):
        read_header(bytes(harmed))
    assert decoder.decode([bytes(harmed), *packets[1:], b"short"]) is not None
    assert decoder.damaged == 2


def test_a_decoder_of_other_weights_refuses_every_packet() -> None:
    """The twin shows nothing of what the masked codec coded, nor do weights with one number changed."""
    packets = NeuralEncoder(codec()).encode_at(moving().pictures[0], at(3))
    changed = replace(codec(), tables=replace(codec().tables, mixes=codec().tables.mixes * 0.99))
    assert len({one.weights for one in (codec(), codec(masked=False), changed)}) == 3
    for other in (codec(masked=False), changed):
        decoder = NeuralDecoder(other)
        with pytest.raises(
            BadInput, match="give both ends the same codec and the same file of weights"
        ):
            decoder.decode(packets)
        assert decoder.shown is None
        with pytest.raises(BadInput, match="give both ends"):
            other.place(packets[0])
    assert codec().place(packets[0]).number == 0


def test_weights_are_kept_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "again.npz"
    save_codec(codec(), path)
    encoder, other = NeuralEncoder(codec()), NeuralEncoder(load_codec(path=path))
    for picture in moving().pictures[:2]:
        assert encoder.encode_at(picture, at(3)) == other.encode_at(picture, at(3))
    with pytest.raises(BadInput, match="train them"):
        load_codec(path=tmp_path / "absent.npz")


def test_a_masked_decoder_loses_less_to_losses_than_its_twin() -> None:
    """A third of each picture's packets lost, the sender told at once: how far does each fall?"""
    fall = {}
    for masked in (True, False):
        found = {}
        for share in (0.0, 0.33):
            encoder, decoder = NeuralEncoder(codec(masked)), NeuralDecoder(codec(masked))
            random, quality = np.random.default_rng(3), []
            for number, picture in enumerate(moving().pictures):
                packets = encoder.encode_at(picture, at(4))
                kept = [p for p in packets if number == 0 or random.random() >= share]
                shown = decoder.decode(kept)
                encoder.learn(number, {read_header(p).index for p in kept})
                if shown is not None and number:
                    quality.append(psnr_db(shown, picture))
            found[share] = float(np.mean(quality))
        fall[masked] = found[0.0] - found[0.33]
    assert 0 < fall[True] < fall[False]
