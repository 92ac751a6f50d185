"""Retain what pays: blocks go in the order of what they are expected to save per byte and second.

How likely a block is used again is learned while it runs, from nothing but what has happened: no
workload is known beforehand.  What is learned from is the chain, the blocks of one prompt, because
its blocks are used again together or not at all.  What distinguishes chains: how many turns came
before, how long it is, how long the last turn took to come, how much of it is new, and whether a
block is the short last one or one that many different chains go through.

Within a chain the last block goes first: one after a gap can never be used.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise

from kdn.core import BlockKey
from kdn.store.policies.policy import EvictionPolicy, Use
from kdn.store.policies.ranking import EvictionRanking, density_level, level_of
from kdn.store.policies.risk import EDGES_S, NUM_AGES, Feature, Rate, ReuseRisk, age_of

__all__ = ["Saving", "Value", "same_saving"]

Saving = Callable[[Use], float]
"""What one use of a block saves, in any unit."""

_SHARED_BY = 3
"""A block that so many different blocks have followed belongs to no one chain."""
_CHAINS_PER_UPDATE = 100
_MOST_REMEMBERED = 400_000
"""Keys that are remembered after they went, so that what was given up too early is learned too."""

_KINDS = ("body", "tail", "shared")
"""The kinds have little to do with one another, so each has a model of its own."""


def same_saving(use: Use) -> float:
    """A use saves the same for every byte, whatever the block."""
    return float(use.size_bytes)


@dataclass(slots=True)
class _Group:
    """Blocks that were last used together and are thought to have the same future."""

    kind: str
    at_s: float
    rate: Rate
    size: int
    unused: int
    """Its blocks whose next use is remembered to be waited for."""
    number: int
    age: int = 0
    """The age bucket that it is to reach next."""


@dataclass(slots=True)
class _Mark:
    """What is remembered of a block, here or gone."""

    group: _Group
    turn: int
    stop: int
    followers: set[BlockKey] = field(default_factory=set)


@dataclass(slots=True)
class _Link:
    use: Use
    is_here: bool


class Value(EvictionPolicy):
    """Ranks by expected saving per byte and second, learned online.

    `saving(use)` says what one use of a block saves, in any unit: the cost model's dollars, or
    nothing but its bytes.
    """

    name = "value"

    def __init__(self, saving: Saving = same_saving) -> None:
        self._saving = saving
        self._risks = {kind: ReuseRisk() for kind in _KINDS}
        self._marks: dict[BlockKey, _Mark] = {}
        self._ranking = EvictionRanking(self._risks)
        self._chain: list[_Link] = []
        self._pending: dict[BlockKey, _Link] = {}
        self._prospects: dict[int, float] = {}
        self._waiting: list[OrderedDict[int, _Group]] = [OrderedDict() for _ in range(NUM_AGES)]
        self._numbers = count()
        self._chains = 0

    # --- what happens ---

    def admits(self, use: Use) -> bool:
        """Is it worth more than what would go first? What follows a refused block is not."""
        if self._chain and not _follows(self._chain[-1].use, use):
            self._settle()
        refused = bool(self._chain) and not self._chain[-1].is_here
        if refused or self._prospect(use) < self._ranking.least(use.at_s):
            self._chain.append(_Link(use, is_here=False))
            return False
        return True

    def insert(self, use: Use) -> None:
        self._link(use)

    def use(self, use: Use) -> None:
        self._link(use)

    def remove(self, key: BlockKey) -> None:
        self._ranking.discard(key)
        link = self._pending.pop(key, None)
        if link is not None:
            link.is_here = False

    def victims(self, now_s: float) -> Iterator[BlockKey]:
        yield from self._ranking.victims(now_s)
        yield from reversed(list(self._pending))

    def _prospect(self, use: Use) -> float:
        """What a block that would follow the running chain is worth, as far as it is known yet.

        Asked for block after block, so it is worked out once for each level of the chain's length.
        """
        length = _length_level(use.stop)
        found = self._prospects.get(length)
        if found is None:
            uses = [*(link.use for link in self._chain), use]
            num_shared = self._num_shared(uses)
            marks = [self._marks.get(one.key) for one in uses[num_shared:]]
            last = next((mark for mark in reversed(marks) if mark is not None), None)
            turn = 0 if last is None else last.turn + 1
            features = _features(uses, num_shared, last, turn, use.at_s)
            density = density_level(self._saving(use), use.size_bytes)
            level = level_of(self._risks["body"].rate(features).multiple)
            found = self._prospects[length] = self._ranking.worth(("body", level, density), 0.0)
        return found

    def __len__(self) -> int:
        return len(self._ranking) + len(self._pending)

    def check(self) -> None:
        super().check()
        self._ranking.check()
        ranked = [key for key in self._pending if key in self._ranking]
        assert not ranked, "ranked and in the running chain"

    # --- chains ---

    def _link(self, use: Use) -> None:
        """Add to the running chain, or settle that and begin another."""
        if self._chain and not _follows(self._chain[-1].use, use):
            self._settle()
        self._ranking.discard(use.key)
        link = _Link(use, is_here=True)
        self._chain.append(link)
        self._pending[use.key] = link

    def _settle(self) -> None:
        """The chain is complete: learn from it, and rank its blocks."""
        chain, uses = self._chain, [link.use for link in self._chain]
        now_s = uses[-1].at_s
        self._age(now_s)
        self._note_followers(uses)
        num_shared = self._num_shared(uses)
        before = [self._marks.get(use.key) for use in uses]
        for mark in before:
            if mark is not None:
                self._count_use(mark, now_s)
        groups = self._groups(uses, before, num_shared, now_s)
        density = density_level(sum(map(self._saving, uses)), sum(u.size_bytes for u in uses))
        for link, (group, turn) in zip(reversed(chain), reversed(groups), strict=True):
            self._remember(link.use, group, turn)
            if link.is_here:
                place = (group.kind, level_of(group.rate.multiple), density)
                self._ranking.add(link.use.key, link.use.at_s, place)
        self._chain, self._pending, self._prospects = [], {}, {}
        self._chains += 1
        if self._chains % _CHAINS_PER_UPDATE == 0:
            self._ranking.learned()
            self._forget_oldest()

    def _groups(
        self, uses: Sequence[Use], before: Sequence[_Mark | None], num_shared: int, now_s: float
    ) -> list[tuple[_Group, int]]:
        """The group and the turn of every block of a chain."""
        known = [mark for mark in before[num_shared:] if mark is not None]
        last = known[-1] if known else None
        turn = 0 if last is None else last.turn + 1
        features = _features(uses, num_shared, last, turn, now_s)
        full = max(use.num_tokens for use in uses)
        kinds = [_kind(n < num_shared, use.num_tokens < full) for n, use in enumerate(uses)]
        body = self._group("body", features, kinds.count("body"), now_s)
        found = []
        for kind in kinds:
            group = body if kind == "body" else self._group(kind, (), 1, now_s)
            found.append((group, 0 if kind == "shared" else turn))
        return found

    def _group(self, kind: str, features: tuple[Feature, ...], size: int, now_s: float) -> _Group:
        rate = self._risks[kind].rate(features)
        group = _Group(kind, now_s, rate, size, size, next(self._numbers))
        if size:
            self._waiting[0][group.number] = group
        return group

    def _note_followers(self, uses: Sequence[Use]) -> None:
        for use, following in pairwise(uses):
            mark = self._marks.get(use.key)
            if mark is not None and len(mark.followers) < _SHARED_BY:
                mark.followers.add(following.key)

    def _num_shared(self, uses: Sequence[Use]) -> int:
        for number, use in enumerate(uses):
            mark = self._marks.get(use.key)
            if mark is None or len(mark.followers) < _SHARED_BY:
                return number
        return len(uses)

    def _remember(self, use: Use, group: _Group, turn: int) -> None:
        mark = self._marks.get(use.key)
        if mark is None:
            self._marks[use.key] = _Mark(group, turn, use.stop)
        else:
            mark.group, mark.turn = group, turn

    # --- learning ---

    def _count_use(self, mark: _Mark, now_s: float) -> None:
        group = mark.group
        self._wait_no_more(group)
        self._risks[group.kind].observe(group.rate, age_of(now_s - group.at_s), 1 / group.size)

    def _wait_no_more(self, group: _Group) -> None:
        """For one of its blocks; for a group of which none is left there is nothing to count."""
        group.unused -= 1
        if not group.unused:
            self._waiting[group.age].pop(group.number, None)

    def _age(self, now_s: float) -> None:
        """Count every group at each age bucket that it has reached with blocks still unused."""
        for age, waiting in enumerate(self._waiting):
            while waiting:
                number, group = next(iter(waiting.items()))
                if now_s - group.at_s < EDGES_S[age]:
                    break
                del waiting[number]
                self._risks[group.kind].expose(group.rate, age, group.unused / group.size)
                if age + 1 < NUM_AGES:
                    group.age = age + 1
                    self._waiting[group.age][number] = group

    def _forget_oldest(self) -> None:
        """Of blocks that are gone, forget the older half when too many are remembered.

        A use of these would not be seen, so it is not waited for.
        """
        if len(self._marks) <= max(_MOST_REMEMBERED, 2 * len(self)):
            return
        gone = [key for key in self._marks if key not in self._ranking]
        gone.sort(key=lambda key: self._marks[key].group.at_s)
        for key in gone[: len(gone) // 2]:
            self._wait_no_more(self._marks.pop(key).group)


def _follows(before: Use, use: Use) -> bool:
    return before.stop == use.start and before.salt == use.salt and before.at_s <= use.at_s


def _kind(is_shared: bool, is_short: bool) -> str:
    return "shared" if is_shared else "tail" if is_short else "body"


def _features(
    uses: Sequence[Use], num_shared: int, last: _Mark | None, turn: int, now_s: float
) -> tuple[Feature, ...]:
    """What is known of a chain that may tell how likely it goes on."""
    stop = uses[-1].stop
    known = last.stop if last is not None else uses[max(num_shared - 1, 0)].stop
    gap = -1 if last is None else _doublings((now_s - last.group.at_s) / 10, 1.5, most=8)
    new = -1 if last is None else _doublings((stop - known) / 512, 1, most=7)
    return (("turn", min(turn, 6)), ("length", _length_level(stop)), ("gap", gap), ("new", new))


def _length_level(tokens: int) -> int:
    return _doublings(tokens / 512, 2, most=20)


def _doublings(ratio: float, per_doubling: float, most: int) -> int:
    return min(int(per_doubling * math.log2(ratio + 1)), most)
