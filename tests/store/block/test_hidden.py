"""Layer inputs (E) in a block: stored beside its layers, verified, and read without them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kdn.errors import BadInput, CorruptBlock
from kdn.store import CODECS, open_store
from kdn.store.block.format import encode_block
from kdn.store.block.reader import check_whole
from tests.store.helpers import block_id, make_block

STATES = {1: bytes(range(200)) + bytes(40), 2: b"\x07" * 80}
"""Ten tokens: six values of four bytes each at layer 1, two at layer 2."""


def with_states(tokens: range = range(10)):  # type: ignore[no-untyped-def]  # noqa: ANN201
    return replace(make_block(block_id(tokens)), hidden=STATES)


@pytest.mark.parametrize("codec", ["none", "lossless"])
def test_they_come_back_beside_the_layers(codec: str) -> None:
    """Sections say their layer and width; no codec touches them."""
    encoded = encode_block(with_states(), CODECS[codec])
    whole = check_whole(encoded.key, encoded.data)
    assert [(one.layer, one.width) for one in whole.header.hidden] == [(1, 6), (2, 2)]
    with open_store(None, memory_bytes=1 << 22) as store:
        store.put(with_states(), CODECS[codec])
        reader = store.open(with_states().id)
        assert reader is not None
        with reader:
            assert reader.holds_hidden(1)
            assert not reader.holds_hidden(0)
            assert reader.hidden(0) is None
            assert bytes(reader.hidden(1) or b"") == STATES[1]
            assert reader.layer(2) == make_block(block_id(range(10))).layers[2]
            assert bytes(reader.hidden(2) or b"") == STATES[2], "also once all layers have come"
        store.check()


def test_a_block_without_them_has_the_bytes_that_it_always_had() -> None:
    plain = make_block(block_id(range(10)))
    assert encode_block(plain).data == encode_block(replace(plain, hidden={})).data


@pytest.mark.parametrize("at", [0, 100, 239])
def test_a_changed_bit_is_is_found_where_it_is_read(at: int) -> None:
    encoded = encode_block(with_states())
    run = encoded.header.hidden[0].run
    data = bytearray(encoded.data)
    data[encoded.header.body_start + run.offset + at] ^= 1
    with pytest.raises(CorruptBlock, match="hidden 0 fails its checksum"):
        check_whole(encoded.key, memoryview(data))


def test_rows_that_tokens_do_not_share_evenly_are_refused() -> None:
    plain = make_block(block_id(range(10)))
    for size in (0, 39, 41, 100):
        with pytest.raises(BadInput, match=f"inputs of layer 1 have {size} bytes"):
            replace(plain, hidden={1: bytes(size)})
