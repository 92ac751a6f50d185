"""Tiers give up what their policy says, on disk across processes and restarts too."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdn.clock import ManualClock
from kdn.errors import NoSpace
from kdn.store import DiskTier, EncodedBlock, MemoryTier, encode_block, open_store
from kdn.store.policies import EvictionPolicy, Fifo, Lru, Ruled, Rules, Use, Value
from kdn.trace import NoTrace
from tests.store.helpers import MODEL, block_id, make_block

SIZE = 16384


def encoded(number: int, salt: str = "") -> EncodedBlock:
    return encode_block(make_block(block_id([number], salt=salt)))


def nobody(_: str) -> bool:
    return False


def make(
    kind: str, folder: Path, policy: EvictionPolicy, clock: ManualClock, room: int
) -> MemoryTier | DiskTier:
    if kind == "memory":
        return MemoryTier(room * SIZE, NoTrace(), policy, clock)
    return DiskTier(folder / "kv", room * SIZE, clock, NoTrace(), policy)


def numbers(tier: MemoryTier | DiskTier) -> set[int]:
    tier.changes()
    return {n for n in range(9) if tier.holds(encoded(n).key)}


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_a_tier_gives_up_what_its_policy_says(kind: str, tmp_path: Path) -> None:
    for policy, left in ((Fifo(), {1, 2}), (Lru(), {0, 2})):
        clock = ManualClock()
        tier = make(kind, tmp_path / policy.name, policy, clock, room=2)
        for number in (0, 1):
            tier.put(encoded(number), nobody)
            clock.advance(1.0)
        numbers(tier)
        tier.touch(encoded(0).key)
        tier.put(encoded(2), nobody)
        assert numbers(tier) == left
        tier.check()
        tier.close()


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_what_is_past_its_time_is_not_found(kind: str, tmp_path: Path) -> None:
    clock = ManualClock()
    tier = make(kind, tmp_path, Ruled(Lru(), Rules(ttl_s=60.0)), clock, room=4)
    tier.put(encoded(0), nobody)
    clock.advance(59.0)
    tier.put(encoded(1), nobody)
    assert numbers(tier) == {0, 1}
    clock.advance(1.0)
    assert numbers(tier) == {1}
    tier.check()
    tier.close()


class Picky(Lru):
    """Lets nobody in for whom another would have to go."""

    def admits(self, use: Use) -> bool:
        return False


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_what_is_not_worth_it_is_not_let_in(kind: str, tmp_path: Path) -> None:
    tier = make(kind, tmp_path, Picky(), ManualClock(), room=2)
    for number in (0, 1):
        tier.put(encoded(number), nobody)
    with pytest.raises(NoSpace, match="is worth less than what would have to go"):
        tier.put(encoded(2), nobody)
    assert numbers(tier) == {0, 1}
    tier.close()


def test_a_policy_knows_after_a_restart_what_was_used_when(tmp_path: Path) -> None:
    clock = ManualClock()
    with_value = make("disk", tmp_path, Value(), clock, room=3)
    for number in range(3):
        with_value.put(encoded(number), nobody)
        clock.advance(10.0)
    numbers(with_value)
    with_value.touch(encoded(0).key)
    with_value.close()
    again = make("disk", tmp_path, Value(), clock, room=3)
    again.put(encoded(3), nobody)
    assert numbers(again) == {0, 2, 3}
    again.check()
    again.close()


def test_another_process_evicts_what_we_rank(tmp_path: Path) -> None:
    clock = ManualClock()
    ours = make("disk", tmp_path, Value(), clock, room=2)
    theirs = make("disk", tmp_path, Lru(), clock, room=2)
    for number in range(4):
        (ours if number % 2 else theirs).put(encoded(number), nobody)
        clock.advance(1.0)
    assert numbers(ours) == numbers(theirs) == {2, 3}
    ours.check()
    theirs.check()
    ours.close()
    theirs.close()


def test_the_setting_reaches_the_tiers(tmp_path: Path) -> None:
    clock = ManualClock()
    rules = Rules(ttl_s=5.0)
    with open_store(tmp_path / "kv", clock=clock, policy="value", rules=rules) as store:
        store.put(make_block(block_id([1, 2])))
        assert store.match(MODEL, block_id([1]).recipe, "", [1, 2]).num_tokens == 2
        clock.advance(5.0)
        assert store.match(MODEL, block_id([1]).recipe, "", [1, 2]).num_tokens == 0
        store.check()
