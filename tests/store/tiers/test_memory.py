"""The memory tier: a hard cap, least recently used first, never what is pinned."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdn.errors import NoSpace
from kdn.store import CODECS, EncodedBlock, MemoryTier, encode_block
from kdn.trace import NoTrace, Recorder
from tests.store.helpers import block_id, make_block
from tests.store.twins import NoTier

SIZE = 16384
"""A test block of up to 64 tokens: one page of header and three of layers."""


def encoded(number: int) -> EncodedBlock:
    return encode_block(make_block(block_id([number])))


def nobody(_: str) -> bool:
    return False


def kept(tier: MemoryTier) -> list[int]:
    """The numbers of the blocks that are held, oldest use first."""
    names = {encoded(number).key: number for number in range(8)}
    return [names[key] for key in tier.block_keys()]


def test_the_least_recently_used_goes_first() -> None:
    trace = Recorder()
    tier = MemoryTier(3 * SIZE, trace)
    for number in (0, 1, 2):
        tier.put(encoded(number), nobody)
    tier.touch(encoded(0).key)
    tier.put(encoded(3), nobody)
    assert kept(tier) == [2, 0, 3]
    assert [event.fields["key"] for event in trace.events("store.evict")] == [encoded(1).key]
    assert (tier.usage().blocks, tier.usage().size_bytes) == (3, 3 * SIZE)
    tier.check()


def test_pinned_blocks_stay_and_no_space_changes_nothing() -> None:
    tier = MemoryTier(2 * SIZE, NoTrace())
    tier.put(encoded(0), nobody)
    tier.put(encoded(1), nobody)
    tier.put(encoded(2), lambda key: key == encoded(0).key)
    assert kept(tier) == [0, 2]
    with pytest.raises(NoSpace):
        tier.put(encoded(3), lambda _: True)
    assert kept(tier) == [0, 2]
    tier.check()


def test_a_block_larger_than_the_tier_is_refused() -> None:
    tier = MemoryTier(SIZE - 1, NoTrace())
    with pytest.raises(NoSpace):
        tier.put(encoded(0), nobody)


def test_a_new_form_that_does_not_fit_leaves_the_old_one() -> None:
    """Random bytes do not shrink: packed they take 192 bytes more."""
    block = make_block(block_id([1] * 64))
    packed = encode_block(block, CODECS["lossless"])
    for cap_bytes, codec in [(SIZE, "none"), (packed.size_bytes, "lossless")]:
        tier = MemoryTier(cap_bytes, NoTrace())
        tier.put(encode_block(block), nobody)
        with suppress(NoSpace):
            tier.replace(packed, nobody)
        handle = tier.open(packed.key)
        assert handle is not None
        assert handle.header is not None
        assert handle.header.codec == codec
        tier.check()


def test_an_evicted_block_can_be_read_to_its_end() -> None:
    tier = MemoryTier(SIZE, NoTrace())
    tier.put(encoded(0), nobody)
    handle = tier.open(encoded(0).key)
    tier.put(encoded(1), nobody)
    assert tier.open(encoded(0).key) is None
    assert handle is not None
    assert bytes(handle.read(0, SIZE)) == bytes(encoded(0).data)


def test_changes_tell_what_came_and_went() -> None:
    tier = MemoryTier(SIZE, NoTrace())
    tier.put(encoded(0), nobody)
    tier.put(encoded(1), nobody)
    changes = tier.changes()
    assert [entry.key for entry in changes.added] == [encoded(0).key, encoded(1).key]
    assert changes.removed == (encoded(0).key,)
    assert tier.changes().added == ()


numbers = st.integers(0, 7)
steps = st.lists(
    st.tuples(st.sampled_from(["put", "touch", "drop"]), numbers, st.frozensets(numbers)),
    max_size=30,
)


@settings(max_examples=80)
@given(steps)
def test_random_use_equals_an_ordered_dict(work: list[tuple[str, int, frozenset[int]]]) -> None:
    tier, twin = MemoryTier(3 * SIZE, NoTrace()), OrderedDict[int, None]()
    for verb, number, pinned in work:
        block = encoded(number)
        spare = {encoded(pin).key for pin in pinned}
        if verb == "drop":
            assert tier.drop(block.key) == (number in twin)
            twin.pop(number, None)
        elif number in twin:
            twin.move_to_end(number)
            tier.touch(block.key) if verb == "touch" else tier.put(block, spare.__contains__)
        elif verb == "put":
            victim = next((held for held in twin if held not in pinned), None)
            if len(twin) < 3:
                tier.put(block, spare.__contains__)
                twin[number] = None
            elif victim is None:
                with pytest.raises(NoSpace):
                    tier.put(block, spare.__contains__)
            else:
                tier.put(block, spare.__contains__)
                del twin[victim]
                twin[number] = None
        assert kept(tier) == list(twin)
        tier.check()


def test_the_dull_twin_keeps_nothing() -> None:
    tier, block = NoTier(), encoded(0)
    tier.put(block, nobody)
    assert tier.open(block.key) is None
    assert not tier.holds(block.key)
    assert not tier.drop(block.key)
    assert tier.usage().blocks == 0
    assert tier.changes().added == ()
    assert list(tier.block_keys()) == []
    tier.touch(block.key)
    tier.quarantine(block.key)
    tier.save()
    tier.check()
    tier.close()
