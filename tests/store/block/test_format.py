"""Format version 1: what goes in comes out, and nothing else ever does."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdn.core import BlockKey, Cause, ColumnScale, Fingerprint, KvShape, Recipe
from kdn.errors import BadInput, CorruptBlock
from kdn.machine.memory import allocate
from kdn.store import Codec, encode_block
from kdn.store.block.format import (
    ALIGN,
    MAGIC,
    PREAMBLE_BYTES,
    Block,
    ColumnSection,
    EncodedBlock,
    Header,
    HiddenSection,
    Run,
    _header_checksum,
    _run_checksum,
    _write_header,
    decode_header,
    header_bytes,
)
from kdn.store.block.wire import WireHeader, scales_within
from kdn.store.codecs import CODECS, RunForm
from tests.store.helpers import SHAPE, block_id, make_block, run_of

TINY = KvShape(num_layers=2, num_kv_heads=1, head_dim=2, dtype="bfloat16")


def decode(data: bytes | bytearray | memoryview, key: BlockKey) -> Header:
    """As a reader does it: preamble, header, size."""
    view = memoryview(data)
    region = header_bytes(view[:PREAMBLE_BYTES])
    if region > view.nbytes:
        raise CorruptBlock("ends inside its header")
    return decode_header(view[:region], key, view.nbytes)


def read_all(data: bytes | bytearray | memoryview, key: BlockKey) -> list[bytes]:
    header = decode(data, key)
    ranges = [header.layer_range(layer) for layer in range(header.shape.num_layers)]
    view = memoryview(data)
    return [
        bytes(header.layer(layer, view[start:stop])) for layer, (start, stop) in enumerate(ranges)
    ]


def rewritten(encoded: EncodedBlock, **changes: object) -> bytearray:
    """The block with a header that claims something else, under a checksum that fits."""
    data = bytearray(encoded.data)
    length = int.from_bytes(data[12:16], "little")
    wire = msgspec.msgpack.decode(data[PREAMBLE_BYTES : PREAMBLE_BYTES + length], type=WireHeader)
    claims = msgspec.structs.replace(wire, **changes)
    packed = msgspec.msgpack.encode(claims)
    start = -(-(PREAMBLE_BYTES + len(packed)) // ALIGN) * ALIGN
    region = bytearray(start)
    _write_header(memoryview(region), claims, encoded.key)
    return region + data[encoded.header.body_start :]


texts = st.text(max_size=20).filter(lambda text: text.isprintable())
recipes = st.builds(Recipe, st.lists(st.sampled_from(Cause), max_size=3).map(tuple), texts)
shapes = st.builds(
    KvShape,
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 5),
    st.sampled_from(["bfloat16", "float16", "float32"]),
)
tokens_lists = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=30)


@settings(max_examples=50)
@given(tokens_lists, tokens_lists, recipes, texts, shapes)
def test_a_block_survives_the_round_trip(
    tokens: list[int], behind: list[int], recipe: Recipe, salt: str, shape: KvShape
) -> None:
    name = block_id(tokens, behind, recipe=recipe, salt=salt, fingerprint=Fingerprint("f"))
    encoded = encode_block(make_block(name, shape))
    header = decode(encoded.data, name.key)
    assert (header.id, header.shape, header.codec) == (name, shape, "none")
    assert header == encoded.header
    assert read_all(encoded.data, name.key) == [
        run_of(name, layer, shape) for layer in range(shape.num_layers)
    ]


def test_every_layer_starts_on_a_page() -> None:
    encoded = encode_block(make_block(block_id(range(65))))
    starts = [encoded.header.layer_range(layer)[0] for layer in range(3)]
    assert starts == [4096, 3 * 4096, 5 * 4096]  # 65 tokens of 64 bytes take two pages
    assert encoded.size_bytes == 7 * 4096


def test_every_single_bit_of_a_file_is_guarded() -> None:
    name = block_id([5, 6, 7])
    data = bytearray(encode_block(make_block(name, TINY)).data)
    header = decode(data, name.key)
    assert len(data) == 3 * ALIGN
    undetected = []
    for place, bit in product(range(len(data)), range(8)):
        data[place] ^= 1 << bit
        try:
            if place < header.body_start:
                decode(data, name.key)
            else:
                layer = place // ALIGN - 1
                start, stop = header.layer_range(layer)
                header.layer(layer, memoryview(data)[start:stop])
            undetected.append((place, bit))
        except CorruptBlock:
            pass
        data[place] ^= 1 << bit
    assert undetected == []


@given(st.integers(0, 3 * ALIGN - 1))
def test_a_file_cut_short_anywhere_is_refused(length: int) -> None:
    name = block_id([5, 6, 7])
    data = bytes(encode_block(make_block(name, TINY)).data)
    with pytest.raises(CorruptBlock):
        read_all(data[:length], name.key)


def test_bytes_behind_the_end_are_refused() -> None:
    name = block_id([5])
    data = bytes(encode_block(make_block(name, TINY)).data)
    with pytest.raises(CorruptBlock, match="bytes, its header"):
        decode(data + bytes(ALIGN), name.key)


@given(st.binary(max_size=200))
def test_noise_is_never_a_header(noise: bytes) -> None:
    name = block_id([5])
    framed = MAGIC + (1).to_bytes(4, "little") + noise
    for data in (noise, framed, framed.ljust(ALIGN, b"\0")):
        with pytest.raises(CorruptBlock):
            decode(data, name.key)


def test_a_header_with_a_good_checksum_and_noise_inside_is_refused() -> None:
    name = block_id([5])
    data = bytearray(encode_block(make_block(name, TINY)).data)
    data[PREAMBLE_BYTES] ^= 0xFF
    data[16:32] = _header_checksum(memoryview(data)[:ALIGN], name.key)
    with pytest.raises(CorruptBlock, match="cannot be read"):
        decode(data, name.key)


def test_two_layers_that_changed_places_are_noticed() -> None:
    name = block_id([5, 6, 7])
    data = bytearray(encode_block(make_block(name, TINY)).data)
    one, two = slice(ALIGN, 2 * ALIGN), slice(2 * ALIGN, 3 * ALIGN)
    data[one], data[two] = data[two], data[one]
    with pytest.raises(CorruptBlock, match="layer 0"):
        read_all(data, name.key)


def test_a_layer_of_another_block_is_noticed() -> None:
    mine, other = block_id([1]), block_id([2])
    data = bytearray(encode_block(make_block(mine, TINY)).data)
    data[ALIGN:] = encode_block(make_block(other, TINY)).data[ALIGN:]
    with pytest.raises(CorruptBlock, match="layer 0"):
        read_all(data, mine.key)


def test_a_block_under_another_name_is_noticed() -> None:
    mine, other = block_id([1]), block_id([2])
    with pytest.raises(CorruptBlock):
        decode(encode_block(make_block(mine, TINY)).data, other.key)


@pytest.mark.parametrize(
    "claims",
    [
        {"num_layers": 10**9},
        {"num_layers": 0},
        {"num_kv_heads": 10**9},
        {"head_dim": -4},
        {"dtype": "int3"},
        {"codec": "../../secret"},
        {"tokens": b""},
        {"tokens": b"123"},
        {"tokens": bytes(4 * 257)},
        {"start": -1},
        {"salt": "s" * 5000},
        {"salt": "\x01alice"},
        {"layers": ()},
        {"layers": (Run(0, 1 << 40, bytes(16)), Run(4096, 1, bytes(16)))},
        {"layers": (Run(-4096, 24, bytes(16)), Run(4096, 24, bytes(16)))},
        {"layers": (Run(0, 24, bytes(16)), Run(0, 24, bytes(16)))},
        {"layers": (Run(0, 24, bytes(16)), Run(1 << 30, 24, bytes(16)))},
        {"layers": (Run(0, 24, b""), Run(4096, 24, b""))},
        {"hidden": (HiddenSection(9, 4, "bfloat16", Run(8192, 24, bytes(16))),)},
        {"hidden": (HiddenSection(1, 5, "bfloat16", Run(8192, 24, bytes(16))),)},
        {"columns": (ColumnSection(9, bytes(4), 2.0),)},
        {"columns": (ColumnSection(1, bytes(3), 2.0),)},
        {"columns": (ColumnSection(1, bytes(8), 2.0),)},
        {"columns": (ColumnSection(1, b"\3\0\0\0", 2.0),)},
        {"columns": (ColumnSection(1, bytes(4), 0.0),)},
    ],
)
def test_impossible_claims_are_refused_before_anything_is_allocated(
    claims: dict[str, object],
) -> None:
    encoded = encode_block(make_block(block_id([5, 6, 7]), TINY))
    with pytest.raises(CorruptBlock):
        decode(rewritten(encoded, **claims), encoded.key)


def test_a_key_that_does_not_follow_from_the_header_is_refused() -> None:
    encoded = encode_block(make_block(block_id([5, 6, 7]), TINY))
    with pytest.raises(CorruptBlock, match="under that name"):
        decode(rewritten(encoded, salt="somebody-else"), encoded.key)


def test_reserved_sections_are_understood() -> None:
    encoded = encode_block(make_block(block_id([5, 6, 7]), TINY))
    hidden = HiddenSection(1, 4, "bfloat16", Run(8192, 24, bytes(16)))
    data = rewritten(encoded, hidden=(hidden,)) + bytes(ALIGN)
    header = decode(data, encoded.key)
    assert header.hidden == (hidden,)
    assert header.sections_start == len(data) - ALIGN
    assert read_all(data, encoded.key) == read_all(encoded.data, encoded.key)
    with pytest.raises(CorruptBlock, match="hidden 0"):
        header.check_sections(memoryview(data)[header.sections_start :])


def test_steered_columns_are_stored_with_their_factors_and_heads() -> None:
    scales = (ColumnScale(0, (2, 0), 1.5, (0, 3)), ColumnScale(1, (1,), 0.5, literal=True))
    block = replace(make_block(block_id([5, 6, 7]), TINY), columns=scales)
    for codec in (None, CODECS["lossless"]):
        encoded = encode_block(block, codec)
        header = decode(encoded.data, encoded.key)
        assert scales_within(header.columns, 10) == (
            ColumnScale(0, (10, 12), 1.5, (0, 3)),
            ColumnScale(1, (11,), 0.5, literal=True),
        )
    plain = encode_block(make_block(block_id([5, 6, 7]), TINY))
    assert decode(plain.data, plain.key).columns == ()


def test_sections_stand_under_checksums_of_their_own() -> None:
    encoded = encode_block(make_block(block_id([5, 6, 7]), TINY))
    payload = bytes(range(24)).ljust(ALIGN, b"\0")
    checksum = _run_checksum(encoded.key, "hidden", 0, memoryview(payload))
    hidden = HiddenSection(1, 4, "bfloat16", Run(8192, 24, checksum))
    data = rewritten(encoded, hidden=(hidden,)) + payload
    header = decode(data, encoded.key)
    header.check_sections(memoryview(payload))
    with pytest.raises(CorruptBlock, match="hidden 0"):
        header.check_sections(memoryview(bytes(ALIGN)))


def test_a_newer_format_says_so() -> None:
    encoded = encode_block(make_block(block_id([5]), TINY))
    data = bytearray(encoded.data)
    data[8] = 2
    with pytest.raises(CorruptBlock, match="format 2, this kdn reads 1"):
        decode(data, encoded.key)


class Halving(Codec):
    """Loses every other byte."""

    name = "halving"
    lossless = False

    def encode(self, run: memoryview, form: RunForm) -> memoryview:
        return run[::2]

    def decode(self, stored: memoryview, form: RunForm) -> memoryview:
        return stored


def test_a_lossy_codec_must_be_named_by_the_recipe() -> None:
    with pytest.raises(BadInput, match="halving"):
        encode_block(make_block(block_id([5])), Halving())


def test_encoding_copies_what_the_caller_may_reuse() -> None:
    name = block_id([5])
    mine = bytearray(run_of(name, 0))
    block = make_block(name)
    encoded = encode_block(type(block)(name, SHAPE, (memoryview(mine), *block.layers[1:])))
    mine[:] = bytes(len(mine))
    assert read_all(encoded.data, name.key)[0] == run_of(name, 0)


def test_what_lay_in_memory_before_shows_in_no_gap_of_a_block() -> None:
    """65 tokens of 1,024 bytes are a quarter of a page more than 16 pages; 20 such runs take 1.4 MB."""
    shape = KvShape(num_layers=20, num_kv_heads=2, head_dim=64, dtype="float32")
    for _ in range(8):
        np.frombuffer(allocate(2 << 20), np.uint8).fill(0xFF)
    name = block_id(range(65))
    encoded = encode_block(make_block(name, shape))
    for layer in range(20):
        start, stop = encoded.header.layer_range(layer)
        assert stop - start == 17 * 4096
        assert encoded.data[start + 65 * 1024 : stop] == bytes(3072)
    used = header_bytes(encoded.data[:PREAMBLE_BYTES])
    assert encoded.data[:used].tobytes().endswith(bytes(1024)), "the header's page is not full"


@given(st.sets(st.integers(0, 65), min_size=2, max_size=2).map(sorted))
def test_k_and_v_may_lie_apart(cut: list[int]) -> None:
    """Cut out of a longer text, K and V of some tokens are two pieces of each layer."""
    start, stop = cut
    whole = block_id(range(65))
    texts = [np.frombuffer(run_of(whole, n), np.uint8).reshape(2, 65, 32) for n in range(3)]
    pieces = [text[:, start:stop].reshape(2, -1) for text in texts]
    apart = tuple(text.reshape(2, -1)[:, 32 * start : 32 * stop].data for text in texts)
    name = block_id(range(start, stop), range(start))
    together = encode_block(Block(name, SHAPE, tuple(piece.tobytes() for piece in pieces)))
    for codec in (None, CODECS["lossless"]):
        found = encode_block(Block(name, SHAPE, apart), codec)
        assert read_all(found.data, name.key) == read_all(together.data, name.key)
    assert encode_block(Block(name, SHAPE, apart)).data == together.data
    assert Block(name, SHAPE, apart).copy().layers == tuple(piece.tobytes() for piece in pieces)
