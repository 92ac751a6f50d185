"""Every policy keeps its books; each does what its paper says on a page of small numbers."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdn.core import BlockKey
from kdn.errors import BadInput
from kdn.store.policies import (
    POLICIES,
    Arc,
    EvictionPolicy,
    Lru,
    Rules,
    S3Fifo,
    Use,
    Value,
    make_policy,
)
from kdn.store.policies.rules import Ruled
from kdn.store.traces.replay import ReplayedTier


def use(name: str, start: int = 0, at_s: float = 0.0) -> Use:
    return Use(BlockKey(name), start, 1, 1, at_s)


def ranked(policy: EvictionPolicy, now_s: float = 0.0) -> str:
    return "".join(policy.victims(now_s))


def play(policy: EvictionPolicy, asked: str, room: int) -> str:
    """One-block prompts through a tier of `room` blocks; which of them hit."""
    tier, hits = ReplayedTier(room, policy), []
    for second, name in enumerate(asked):
        one = use(name, at_s=float(second))
        if tier.ask([one]):
            hits.append(name)
        else:
            tier.insert(one, set())
        tier.check()
    return "".join(hits)


def test_lru_gives_up_what_was_not_used_for_longest() -> None:
    policy = Lru()
    for name in "abc":
        policy.insert(use(name))
    policy.use(use("a"))
    assert ranked(policy) == "bca"
    policy.remove(BlockKey("c"))
    assert ranked(policy) == "ba"


def test_fifo_does_not_care_who_was_used() -> None:
    assert play(make_policy("fifo"), "abacab", room=2) == "a"
    assert play(make_policy("lru"), "abacab", room=2) == "aa"


def test_s3fifo_lets_a_scan_pass_by_what_was_used_twice() -> None:
    asked = "aabbaabb" + "123456789" + "ab"
    assert play(make_policy("lru"), asked, room=4).endswith("bb")
    assert play(S3Fifo(), asked, room=4).endswith("ab")


@pytest.mark.parametrize("uses", [0, 1])
def test_s3fifo_takes_what_comes_back_soon_to_the_main_queue(uses: int) -> None:
    policy = S3Fifo()
    for name in "abcde":
        policy.insert(use(name))
    for _ in range(uses):
        policy.use(use("a"))
    assert ranked(policy) == "abcde"
    policy.remove(BlockKey("a"))
    policy.insert(use("a"))  # its ghost was remembered: it outlives those on probation
    policy.insert(use("f"))
    assert ranked(policy) == "bcdefa"


def test_arc_keeps_what_was_used_again_through_a_scan() -> None:
    asked = "abab" + "123456" + "ab"
    assert play(make_policy("lru"), asked, room=4).endswith("ab")
    assert play(Arc(), asked, room=4) == "abab"


def test_arc_gives_recency_more_room_when_its_ghosts_are_asked_for() -> None:
    policy = Arc()
    for name in "ab":
        policy.insert(use(name))
        policy.use(use(name))
    policy.insert(use("c"))
    assert ranked(policy) == "cab"
    policy.remove(BlockKey("c"))
    policy.insert(use("c"))
    policy.insert(use("d"))
    assert ranked(policy) == "abcd"


def test_value_learns_that_short_tails_never_come_back() -> None:
    """Chains of a full and a short block; the full one is always wanted again, the short never."""
    policy = Value()
    for turn in range(200):
        now_s = turn * 10.0
        for chain in range(3):
            full = Use(BlockKey(f"full{chain}"), 0, 4, 4, now_s)
            (policy.use if turn else policy.insert)(full)
            policy.insert(Use(BlockKey(f"tail{chain}-{turn}"), 4, 1, 4, now_s))
            if turn > 2:
                policy.remove(BlockKey(f"tail{chain}-{turn - 2}"))
    policy.insert(use("another", at_s=2000.0))
    order = list(policy.victims(2000.0))
    assert all(key.startswith("tail") for key in order[:4])
    policy.check()


def test_value_gives_up_a_chain_from_its_end() -> None:
    policy = Value()
    for start, name in enumerate("abcd"):
        policy.insert(use(name, start))
    policy.insert(use("z"))
    assert ranked(policy).replace("z", "") == "dcba"


def test_value_prefers_what_saves_more_for_the_same_room() -> None:
    saving = {"dear": 8.0, "cheap": 1.0}
    policy = Value(lambda one: saving.get(one.key, 1.0))
    policy.insert(use("dear", at_s=0.0))
    policy.insert(use("cheap", at_s=1.0))
    policy.insert(use("last", at_s=2.0))
    assert next(iter(policy.victims(3.0))) == "cheap"


def test_an_unknown_policy_is_refused_by_name() -> None:
    with pytest.raises(BadInput, match="no eviction policy 'lfu'; there are fifo, lru"):
        make_policy("lfu")


@pytest.mark.parametrize("name", POLICIES)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 4)), max_size=60), st.integers(4, 9))
def test_any_trace_keeps_the_books_of(name: str, asked: list[tuple[int, int]], room: int) -> None:
    """Chains of up to four blocks over a few roots: bytes under the cap, every key ranked once."""
    tier = ReplayedTier(room, make_policy(name))
    for second, (root, length) in enumerate(asked):
        chain = [use(f"{root}.{n}", n, float(second)) for n in range(length)]
        hits = tier.ask(chain)
        own = {one.key for one in chain}
        kept = [tier.insert(one, own) for one in chain[hits:]]
        tier.check()
        assert tier.ask(chain) == (length if all(kept) else hits + kept.index(False))


def test_blocks_past_their_time_go_unless_pinned() -> None:
    pinned = {"a"}
    policy = make_policy("lru", Rules(ttl_s=10.0, spared=pinned.__contains__))
    for second, name in enumerate("abc"):
        policy.insert(use(name, at_s=float(second)))
    policy.use(use("b", at_s=5.0))
    assert policy.expired(12.5) == ["c"]
    assert policy.expired(15.5) == ["c", "b"]
    assert ranked(policy, 19.0) == "cb"
    pinned.clear()
    assert policy.expired(20.0) == ["a", "c", "b"]
    assert ranked(policy, 19.0) == "acb"


def test_a_lower_priority_goes_first() -> None:
    policy = make_policy("lru", Rules(priority={"batch": -1, "vip": 5}))
    for name, salt in (("v", "vip"), ("n", ""), ("b", "batch")):
        policy.insert(Use(BlockKey(name), 0, 1, 1, 0.0, salt))
    assert ranked(policy) == "bnv"


def test_a_tenant_without_blocks_is_forgotten() -> None:
    policy = make_policy("lru", Rules(priority={"vip": 5}))
    for number in range(1_000):
        policy.insert(Use(BlockKey("b"), 0, 1, 0, 0.0, f"session-{number}"))
        assert ranked(policy) == "b"
        policy.remove(BlockKey("b"))
    policy.check()
    assert isinstance(policy, Ruled)
    assert len(policy._held) == 0


def test_times_to_live_are_kept_of_last_uses_only() -> None:
    """Blocks come, are used and go; the policy's twin looks through all that is here."""
    rng = Random(1)
    ttl_s = {"a": 3.0, "b": 7.0, "c": 10_000.0}
    policy = Ruled(Lru(), Rules(ttl_of=lambda one: ttl_s.get(one.key)))
    twin: dict[str, float] = {}
    now_s = 0.0
    for _ in range(1_000):
        name, goes, seconds = rng.choice("abcd"), rng.random() < 0.2, rng.choice([0.0, 0.5])
        now_s += seconds
        if name in twin and goes:
            policy.remove(BlockKey(name))
            del twin[name]
        else:
            (policy.use if name in twin else policy.insert)(use(name, at_s=now_s))
            twin[name] = now_s
        ends = sorted((twin[one] + ttl_s[one], one) for one in twin.keys() & ttl_s.keys())
        assert policy.expired(now_s) == [one for end_s, one in ends if end_s <= now_s]
        assert len(policy._ends) <= 2 * 4 + 64


def test_value_waits_for_no_use_that_it_has_seen() -> None:
    policy = Value()
    policy.insert(use("a"))
    for turn in range(1, 1_000):
        policy.use(use("a", at_s=turn / 1_000))
    assert sum(map(len, policy._waiting)) == 1


@pytest.mark.parametrize("rules", [{"ttl_s": 0.0}, {"ttl_s": -1.0}])
def test_rules_that_make_no_sense_are_refused(rules: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        Rules(**rules)
