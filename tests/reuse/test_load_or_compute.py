"""Load or recompute, and which encoding by when: numbers one can check by hand."""

from __future__ import annotations

import pytest

from kdn.reuse.load_or_compute import worth_loading
from kdn.store import BlockHit, Match
from kdn.store.stream.delivery import Level, choose_level
from tests.store.helpers import block_id


def hits(*tiers: str) -> Match:
    """Blocks of 100 tokens each, in these tiers."""
    ids = [block_id(range(100), range(100 * n)) for n in range(len(tiers))]
    return Match(tuple(BlockHit(one, 100, tier) for one, tier in zip(ids, tiers, strict=True)))


def seconds(new: int, cached: int) -> float:
    """A prefill of 100 tokens a second."""
    return new / 100


SPEEDS = {"memory": 1e9, "redis": 2000.0, "far": 500.0}


def speed(hit: BlockHit) -> float | None:
    return SPEEDS.get(hit.tier)


@pytest.mark.parametrize(
    ("tiers", "loaded"),
    [
        # 400 tokens cost 4 s; a block of 1000 bytes takes 0.5 s from redis, 2 s from afar
        (("memory", "memory"), 2),
        (("redis", "redis", "redis"), 3),  # 1.5 s of loading beside 1 s of computing
        (("far",), 1),  # 2 s beside 3 s
        (("far", "far"), 1),  # two would take 4 s, longer than 3 s
        (("far", "memory", "memory"), 3),  # 2 s for all
        (("new", "new", "new"), 3),  # never read from: found out by reading
        ((), 0),
    ],
)
def test_the_choice_that_answers_soonest(tiers: tuple[str, ...], loaded: int) -> None:
    chosen = worth_loading(hits(*tiers), 400, 10, speed, seconds)
    assert len(chosen.hits) == loaded


def test_a_quick_model_recomputes_what_a_slow_one_loads() -> None:
    match = hits("far", "far", "far")
    quick = worth_loading(match, 400, 10, speed, lambda new, _: new / 10_000)
    slow = worth_loading(match, 400, 10, speed, lambda new, _: new / 10)
    assert (len(quick.hits), len(slow.hits)) == (0, 3)


def test_nearly_equal_is_measured_against_the_best() -> None:
    """400 blocks of 1 s each and a prompt of 400 s: 200 take 200 s, and two more are within 1 % of that."""
    chosen = worth_loading(hits(*["far"] * 400), 40_000, 5, speed, seconds)
    assert len(chosen.hits) == 202


@pytest.mark.parametrize("odd", [0.0, -5.0, float("nan"), float("inf")])
def test_a_speed_that_is_none_counts_as_not_known(odd: float) -> None:
    """And an estimate that is no number loads nothing: there is nothing to compare."""
    match = hits("odd", "odd")
    assert worth_loading(match, 400, 10, lambda _: odd, seconds) == match
    assert not worth_loading(match, 400, 10, lambda _: odd, lambda *_: float("nan")).hits


PLAIN, HALF, EIGHTH = Level("none", 8, 0.0), Level("int8", 4, 0.01), Level("bits", 1, 0.2)
LEVELS = [EIGHTH, HALF, PLAIN]


def test_the_level_goes_down_when_the_link_slows_in_the_middle() -> None:
    """4 blocks of 100 tokens in 40 s; the link gives 80 B/s, then 20 B/s from the third on."""
    now, chosen = 0.0, []
    for number, speed in enumerate([80.0, 80.0, 20.0, 20.0]):
        level = choose_level(LEVELS, (4 - number) * 100, (40 - now) * speed)
        chosen.append(level.codec)
        now += 100 * level.token_bytes / speed
    assert chosen == ["none", "none", "bits", "bits"]
    assert now == 10 + 10 + 5 + 5, "int8 for both, or for the last alone, would have been too late"
