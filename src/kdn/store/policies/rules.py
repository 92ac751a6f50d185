"""What people decide, over what a policy would: age limits, pins, priorities.

Quotas are the store's own (`kdn.store.tenants`): they hold under every policy.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from kdn.core import BlockKey
from kdn.errors import BadInput
from kdn.store.policies.policy import EvictionPolicy, Use

__all__ = ["Ruled", "Rules"]

_End = tuple[float, BlockKey, float]
_FEW = 64
"""So many are not worth looking through."""


@dataclass(frozen=True)
class Rules:
    """The defaults change nothing. Raises BadInput for what makes no sense."""

    ttl_s: float | None = None
    """A block goes this long after it was last used, room or not."""
    ttl_of: Callable[[Use], float | None] | None = None
    """The same in seconds for each block by itself; None is for ever."""
    spared: Callable[[BlockKey], bool] | None = None
    """Says which blocks stay past any age limit: those that are pinned."""
    priority: Mapping[str, int] = field(default_factory=dict)
    """By salt; blocks of a lower priority (0 where none is given) go before those of a higher one."""

    def __post_init__(self) -> None:
        if self.ttl_s is not None and self.ttl_s <= 0:
            raise BadInput(f"a time to live of {self.ttl_s} s: give one above zero, or none")


class Ruled(EvictionPolicy):
    """Another policy under rules: it ranks, the rules decide which blocks may go and which must."""

    def __init__(self, inner: EvictionPolicy, rules: Rules) -> None:
        self.name = inner.name
        self._inner = inner
        self._rules = rules
        self._uses: dict[BlockKey, Use] = {}
        """By age of the last use."""
        self._held: Counter[str] = Counter()
        """How many blocks each tenant has that has any."""
        self._ends: list[_End] = []
        """A heap of (when it goes, block, the use that says so). Those of older uses are passed over,
        and taken out when they are more than half of it."""

    def admits(self, use: Use) -> bool:
        return self._inner.admits(use)

    def expired(self, now_s: float) -> list[BlockKey]:
        return list(dict.fromkeys([*self._ended(now_s), *self._stale(now_s)]))

    def insert(self, use: Use) -> None:
        self._uses[use.key] = use
        self._held[use.salt] += 1
        self._note_end(use)
        self._inner.insert(use)

    def use(self, use: Use) -> None:
        del self._uses[use.key]
        self._uses[use.key] = use
        self._note_end(use)
        self._inner.use(use)

    def remove(self, key: BlockKey) -> None:
        use = self._uses.pop(key, None)
        if use is not None:
            self._held[use.salt] -= 1
            if not self._held[use.salt]:
                del self._held[use.salt]
            self._inner.remove(key)

    def victims(self, now_s: float) -> Iterator[BlockKey]:
        """Those that may go, lowest priority first; pinned blocks are not among them."""
        levels = (
            sorted({self._priority(salt) for salt in self._held}) if self._rules.priority else [0]
        )
        for level in levels:
            for key in self._inner.victims(now_s):
                if self._priority(self._uses[key].salt) == level and not self._is_pinned(key):
                    yield key

    def __len__(self) -> int:
        return len(self._inner)

    def check(self) -> None:
        self._inner.check()
        assert len(self._uses) == len(self._inner), "keys differ"
        held = Counter(use.salt for use in self._uses.values())
        assert dict(held) == dict(self._held), "tenants' blocks differ"

    def _stale(self, now_s: float) -> list[BlockKey]:
        if self._rules.ttl_s is None:
            return []
        found = []
        for key, use in self._uses.items():
            if now_s - use.at_s < self._rules.ttl_s:
                break
            if not self._is_pinned(key):
                found.append(key)
        return found

    def _note_end(self, use: Use) -> None:
        ttl_s = None if self._rules.ttl_of is None else self._rules.ttl_of(use)
        if ttl_s is not None:
            heapq.heappush(self._ends, (use.at_s + ttl_s, use.key, use.at_s))
            if len(self._ends) > 2 * len(self._uses) + _FEW:
                self._ends = list({end for end in self._ends if self._is_of_last_use(end)})
                heapq.heapify(self._ends)

    def _is_of_last_use(self, end: _End) -> bool:
        use = self._uses.get(end[1])
        return use is not None and use.at_s == end[2]

    def _ended(self, now_s: float) -> list[BlockKey]:
        """Blocks whose own time is over. They are named until they are gone."""
        over: list[_End] = []
        while self._ends and self._ends[0][0] <= now_s:
            end = heapq.heappop(self._ends)
            if self._is_of_last_use(end):
                over.append(end)
        for end in over:
            heapq.heappush(self._ends, end)
        return [key for _, key, _ in over if not self._is_pinned(key)]

    def _is_pinned(self, key: BlockKey) -> bool:
        return self._rules.spared is not None and self._rules.spared(key)

    def _priority(self, salt: str) -> int:
        return self._rules.priority.get(salt, 0)
