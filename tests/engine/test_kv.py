"""Heads, suffixes and the budget keep their accounts."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from kdn.core import KvShape
from kdn.engine import Capture, KvBudget, PrefixKV, PrefixPool, SuffixKV
from kdn.engine.budget import ResidentStat

SHAPE = KvShape(num_layers=2, num_kv_heads=1, head_dim=4, dtype="float32")


def prefix(name: str, *, complete: bool = True, num_columns: int = 10) -> PrefixKV:
    made = PrefixKV(name, num_columns, SHAPE, torch.float32, "cpu")
    for layer in range(SHAPE.num_layers if complete else 1):
        made.layer_done(layer)
    return made


def test_a_prefix_is_found_by_its_name_from_the_moment_it_is_held() -> None:
    pool = PrefixPool(idle_bytes=1 << 20)
    whole, half = prefix("whole"), prefix("half", complete=False)
    pool.hold(whole)
    pool.hold(half)
    assert pool.find("whole") is whole
    assert pool.find("half") is half, "a request that comes now shares it while it is filled"
    assert pool.find("other") is None
    half.start_over()
    assert half.num_layers_ready == 0, "the one who began did not get through"
    pool.release(half)
    assert pool.find("half") is None, "nobody is left who could fill it"
    pool.check()


def test_unused_prefixes_go_oldest_first_and_used_ones_stay() -> None:
    """Each prefix is 2 x 2 x (64 + 32) x 4 x 4 = 6,144 bytes; room for one idle prefix."""
    pool = PrefixPool(idle_bytes=8000)
    a, b, c = prefix("a"), prefix("b"), prefix("c")
    assert a.size_bytes == 6144
    for one in (a, b, c):
        pool.hold(one)
    pool.release(a)
    pool.release(b)
    assert pool.find("a") is None
    assert pool.find("b") is b
    assert pool.find("c") is c


def test_one_that_is_larger_than_the_room_for_all_takes_none_along() -> None:
    """Two of 6,144 bytes lie in room for 13,000; one of 2 x 2 x (192 + 32) x 4 x 4 = 14,336 does not."""
    pool = PrefixPool(idle_bytes=13_000)
    small, large = [prefix("a"), prefix("b")], prefix("large", num_columns=150)
    assert large.size_bytes == 14_336
    for one in (*small, large):
        pool.hold(one)
    for one in (*small, large):
        pool.release(one)
    assert pool.find("large") is None
    assert [pool.find(one.name) for one in small] == small


def test_a_pool_counts_what_is_complete_and_who_found_it_there() -> None:
    pool = PrefixPool(idle_bytes=1 << 20)
    whole, half = prefix("whole"), prefix("half", complete=False)
    pool.hold(half)
    assert pool.stat() == ResidentStat(num_prefixes=0, size_bytes=0, num_hits=0)
    half.layer_done(1)
    pool.hold(half)
    pool.hold(whole)  # filled elsewhere
    assert pool.stat() == ResidentStat(num_prefixes=2, size_bytes=2 * 6144, num_hits=2)
    for one in (half, half, whole):
        pool.release(one)
    assert pool.stat().num_prefixes == 2, "they stay for the next request"
    pool.shrink(0)
    assert pool.stat() == ResidentStat(num_prefixes=0, size_bytes=0, num_hits=2)


def test_a_suffix_grows_by_extents_and_keeps_what_it_holds() -> None:
    suffix = SuffixKV(SHAPE, torch.float32, "cpu", 1)
    assert suffix.capacity == 256
    suffix.k[1, 0, 255] = 7.0
    suffix.v[1, 0, :, 255] = 5.0
    suffix.grow(257)
    assert suffix.capacity == 512
    assert suffix.k[1, 0, 255].tolist() == [7.0] * 4
    assert suffix.v[1, 0, :, 255].tolist() == [5.0] * 4
    assert float(suffix.k[:, :, 256:].abs().sum()) == 0.0, "columns nobody wrote are zero"


def test_capture_takes_scattered_rows_and_passes_over_what_is_outside() -> None:
    capture = Capture(SHAPE, torch.float32, start=5, num_tokens=3)
    rows = torch.arange(4.0)[:, None, None].expand(4, 1, 4)
    capture.note(0, torch.tensor([4, 5, 7, 900]), rows, rows + 10)
    kept = capture.retained((0,) * 8, 5)
    assert kept.kv[0, 0, :, 0, 0].tolist()[::2] == [1.0, 2.0]
    assert kept.kv[0, 1, :, 0, 0].tolist()[::2] == [11.0, 12.0]
    assert (kept.start, len(kept.token_ids)) == (5, 8)


@given(
    st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 60), st.booleans()), max_size=40)
)
def test_the_budget_is_a_dictionary_with_a_limit(moves: list[tuple[str, int, bool]]) -> None:
    budget, twin = KvBudget(100), dict[str, int]()
    for owner, size, takes in moves:
        if takes and owner not in twin:
            granted = budget.reserve(owner, size)
            assert granted == (sum(twin.values()) + size <= 100)
            if granted:
                twin[owner] = size
        else:
            budget.release(owner)
            twin.pop(owner, None)
        assert budget.free_bytes == 100 - sum(twin.values())
        budget.check()
